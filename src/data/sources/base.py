"""What a source is, and what corpora of files share: the held-out split and the handling of bad records."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from typing import Literal, Protocol, TypeVar

from src.data.sources.reading import Record, parse_json, read_records, require, shape_advice
from src.data.sources.tools import check_on_offer
from src.errors import ConfigError
from src.protocol.dialogue import (
    THOUGHT_OF_CALLS,
    THOUGHT_OF_RESPONSE,
    DataError,
    Dialogue,
    JsonValue,
    Message,
    ToolCall,
    ToolSpec,
    TurnExample,
    split_turns,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

REFUSAL = "None of the provided functions can be used to answer this request."
"""The response where a corpus has an empty list of calls."""


class Source(Protocol):
    """A corpus of single-step examples in named splits."""

    name: str

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that `load` takes, in a fixed order; `train` first, the others are for validation."""
        ...

    def load(self, split: str) -> list[TurnExample]:
        """All examples of a split, in the same order each time.

        Raises:
            ValueError: no such split.
            DataError: a record that cannot be used.
        """
        ...


def check_limits(max_prompt_tokens: int, limit_val: int | None) -> None:
    """Refuse limits of the datamodule that no prompt could keep.

    Raises:
        ValueError: names the key of the one that is less than 1.
    """
    if max_prompt_tokens < 1:
        raise ConfigError(f"data.max_prompt_tokens: expected at least 1, found {max_prompt_tokens}.")
    if limit_val is not None and limit_val < 1:
        raise ConfigError(f"data.limit_val: expected at least 1 or null, found {limit_val}.")


def validation_splits(train: Source, val: Source | None, chosen: Sequence[str] | None) -> dict[str, str]:
    """Name of each validation split that a run uses -> its source's name for it.

    Args:
        train: trained on; its other splits are validated on if there is no `val`.
        val: source to validate on: its splits other than `train`, or `train` as `val` if it has no other.
        chosen: names of those to use; None: all.

    Raises:
        ValueError: `chosen` is empty, or names one that is not there.
    """
    source = val or train
    found = {split: split for split in source.splits() if split != "train"}
    if not found and source is not train:
        found = {"val": "train"}
    if chosen is None:
        return found
    if not chosen or not set(chosen) <= set(found):
        raise ConfigError(f"data.val_splits: expected some of {sorted(found)} or null for all, found {list(chosen)}.")
    return {name: split for name, split in found.items() if name in chosen}


def generator_splits(num_train: int, num_val: int) -> dict[str, int]:
    """Examples of each split of a generated corpus, `train` first.

    Raises:
        ConfigError: a count below 1.
    """
    for key, count in (("num_train", num_train), ("num_val", num_val)):
        if count < 1:
            raise ConfigError(f"data.train.{key}: expected at least 1, found {count}.")
    return {"train": num_train, "val": num_val, "val_unseen": num_val}


def generated_split(counts: Mapping[str, int], split: str, stream: Callable[[str], Iterator[T]]) -> list[T]:
    """The beginning of a split's endless sequence, as many as `counts` says.

    Raises:
        ValueError: unknown split.
    """
    if split not in counts:
        raise ValueError(f"split: expected one of {sorted(counts)}, found {split!r}.")
    return list(islice(stream(split), counts[split]))


def kind_shares(kinds: Mapping[str, float] | None, known: Mapping[str, float]) -> dict[str, float]:
    """The share of each kind of dialogue in a generated corpus; None: the known ones.

    Raises:
        ConfigError: a kind that is not known.
    """
    if unknown := set(kinds or ()) - set(known):
        raise ConfigError(f"data.train.kinds: expected some of {sorted(known)}, found {sorted(unknown)}.")
    return dict(kinds or known)


def target_tags(target: Message) -> tuple[str, ...]:
    """The kind of a step, for metrics by kind.

    >>> target_tags(Message("assistant", "Hello."))
    ('response',)
    """
    if target.calls and target.text:
        return ("call_and_response",)
    if target.calls:
        return ("single_call",) if len(target.calls) == 1 else ("parallel_calls",)
    return ("response", "refusal") if target.text == REFUSAL else ("response",)


def json_calls(
    calls: JsonValue, where: str, field: str, tools: Collection[ToolSpec] | None = None
) -> tuple[ToolCall, ...]:
    """Calls from a list of `{"name": …, "arguments": {…}}`, or from one such object.

    `parameters` is read where there are no `arguments`. Either may be JSON text, as OpenAI has it; null and empty text
    are none. A call may be wrapped as `{"type": "function", "function": {…}}`. An `id` of a call is kept.

    Args:
        calls: the list or object.
        where: the record's place, for the error.
        field: path of `calls` within the record.
        tools: on offer, which the calls must keep to (`check_on_offer`); None: not looked at.

    Raises:
        DataError: a value of another shape, or a call that is not on offer.
    """
    if not isinstance(calls, list | dict):
        raise DataError(where, field, "a list of calls", calls)
    found = []
    for index, call in enumerate([calls] if isinstance(calls, dict) else calls):
        path = field if isinstance(calls, dict) else f"{field}[{index}]"
        found.append(_json_call(call, where, path))
        if tools is not None:
            check_on_offer(found[-1:], tools, where, path)
    return tuple(found)


def _json_call(call: JsonValue, where: str, path: str) -> ToolCall:
    if not isinstance(call, dict):
        raise DataError(where, path, "an object", call)
    id = call.get("id")
    if isinstance(call.get("function"), dict) and "name" not in call:
        call, path = call["function"], f"{path}.function"
    name = require(call, "name", str, where, f"{path}.")
    key = "parameters" if "parameters" in call and call.get("arguments") is None else "arguments"
    if isinstance(text := call.get(key), str):
        call = {**call, key: parse_json(text, where, f"{path}.{key}") if text.strip() else None}
    if key in call and call[key] is None:
        call = {**call, key: {}}
    return ToolCall(name, require(call, key, dict, where, f"{path}."), "" if id is None else str(id))


def dialogue_examples(dialogue: Dialogue) -> list[TurnExample]:
    """`split_turns` with tags, and the published stand-in thought where a target has none."""
    examples = []
    for example in split_turns(dialogue):
        target = example.target
        if not target.thought:
            target = replace(target, thought=THOUGHT_OF_CALLS if target.calls else THOUGHT_OF_RESPONSE)
        examples.append(replace(example, target=target, tags=target_tags(target)))
    return examples


def dialogue_key(example: TurnExample) -> str:
    """A digest of how the example's dialogue opens: the tools on offer and the first message.

    All turns of a dialogue share it, and so do duplicates, since equal prompts open equally. A split by this key
    therefore separates neither. A corpus of rendered prompts needs no dialogue id for it.
    """
    if example.dialogue:
        return example.dialogue
    if example.prompt is not None:
        opening: object = [example.prompt.system, example.prompt.user.split("</user>", 1)[0]]
    else:
        tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.published_parameters()}
            for tool in example.tools
        ]
        first = next((i for i, message in enumerate(example.history) if message.role == "user"), 0)
        fields = ("role", "text", "thought", "calls")  # as they were when splits of runs were first made
        opening = [tools, *({name: asdict(m)[name] for name in fields} for m in example.history[: first + 1])]
    return hashlib.sha256(json.dumps(opening, sort_keys=True).encode()).hexdigest()


def hold_out(keys: Iterable[str], count: int, share: float, seed: int) -> frozenset[str]:
    """Choose the dialogues to validate on.

    Args:
        keys: dialogue keys, repeats allowed.
        count: dialogues to hold out; 0 leaves it to `share`.
        share: share of the dialogues to hold out, rounded to the nearest count.
        seed: another seed, another choice. The choice does not depend on the order of the keys.

    Raises:
        ValueError: both are set, one is out of range, or no dialogue is left to train on.
    """
    unique = set(keys)
    if count and share:
        raise ValueError(f"val_count, val_share: expected one of them, found {count} and {share}.")
    if count < 0 or not 0 <= share < 1:
        raise ValueError(f"val_count, val_share: expected at least 0 and in [0, 1), found {count} and {share}.")
    count = count or round(share * len(unique))
    if count and count >= len(unique):
        raise ValueError(f"val_count, val_share: {count} of {len(unique)} dialogues held out, none left to train on.")
    ranked = sorted(unique, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    return frozenset(ranked[:count])


class CorpusSource(ABC):
    """A published corpus in a file, a folder or on the hub, with a held-out share of its dialogues.

    Splits by dialogue: turns of one dialogue, and examples with the same prompt, are on the same side.

    Attributes:
        default_name: the corpus' name where the config gives none.
    """

    default_name: str

    def __init__(
        self,
        path: str | None = None,
        hub_id: str | None = None,
        hub_split: str = "train",
        val_count: int = 0,
        val_share: float = 0.0,
        val_path: str | None = None,
        seed: int = 0,
        on_bad_record: Literal["error", "skip"] = "error",
        name: str | None = None,
    ) -> None:
        """Nothing is read before the first `load`.

        Args:
            path: file or folder (see `reading.read_records`); wins over `hub_id`.
            hub_id: dataset on the hub.
            hub_split: its split.
            val_count: dialogues to hold out for validation.
            val_share: or their share of all dialogues. Neither: no `val` split.
            val_path: file or folder to validate on, in place of held-out dialogues.
            seed: of the held-out choice.
            on_bad_record: `error` stops the load at the first bad record; `skip` leaves bad ones out, logs and counts
                them in `skipped`. A file that cannot be read at all always stops the load.
            name: name of the corpus in examples and metrics.
        """
        if on_bad_record not in ("error", "skip"):
            raise ValueError(f"on_bad_record: expected 'error' or 'skip', found {on_bad_record!r}.")
        self.name = name or self.default_name
        self.path, self.hub_id, self.hub_split = path, hub_id, hub_split
        self.val_count, self.val_share, self.val_path, self.seed = val_count, val_share, val_path, seed
        self.on_bad_record = on_bad_record
        self.skipped = 0

    @abstractmethod
    def convert(self, record: Record) -> list[TurnExample]:
        """Examples of one record.

        Raises:
            DataError: the record is not in the corpus' format.
        """

    def splits(self) -> tuple[str, ...]:
        """`train`, and `val` where dialogues are held out or there is a file of them."""
        return ("train", "val") if self.val_count or self.val_share or self.val_path else ("train",)

    def load(self, split: str) -> list[TurnExample]:
        """All examples of a split, in the order of the corpus.

        Raises:
            ValueError: the source has no such split.
            DataError: a record is not what the corpus has.
        """
        if split not in self.splits():
            raise ValueError(
                f"source '{self.name}': expected a split of {self.splits()}, found '{split}'. "
                "Set val_path to a file, or val_count or val_share to hold dialogues out."
            )
        return list(self._by_split[split])

    @cached_property
    def _by_split(self) -> dict[str, list[TurnExample]]:
        self.skipped = 0
        if self.val_path is not None:
            val = [replace(example, id=f"val/{example.id}") for example in self._read(self.val_path)]
            return {"train": self._read(self.path), "val": val}
        examples = self._read(self.path)
        held_out = hold_out((one.dialogue for one in examples), self.val_count, self.val_share, self.seed)
        parts: dict[str, list[TurnExample]] = {"train": [], "val": []}
        for example in examples:
            parts["val" if example.dialogue in held_out else "train"].append(example)
        return parts

    def _read(self, path: str | None) -> list[TurnExample]:
        examples: list[TurnExample] = []
        for record in read_records(path, self.hub_id, self.hub_split):
            try:
                if isinstance(record, DataError):
                    raise record
                examples += [replace(one, dialogue=dialogue_key(one)) for one in self.convert(record)]
            except DataError as error:
                if isinstance(record, Record) and (advice := shape_advice(record.value, self.default_name)):
                    error.args = (f"{error} {advice}",)
                if self.on_bad_record == "error":
                    error.args = (f"{error} Correct it, or leave bad records out with data.on_bad_record=skip.",)
                    raise
                self.skipped += 1
                log.warning("Bad record skipped: %s", error)
        if self.skipped:
            log.warning("%s: %d bad records skipped, %d examples read.", self.name, self.skipped, len(examples))
        if not examples:
            raise ValueError(f"source '{self.name}': no example in {path or self.hub_id}.")
        return examples
