"""`rollouts.jsonl` read back: an index of its prompt groups, and the groups that are asked for. Reads, writes nothing.

The index takes a look at the beginning of each line only, so that a file of gigabytes costs no more than its reading.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from src.errors import Refusal
from src.protocol.dialogue import ToolCall, ToolSpec
from src.protocol.formats.known import REST, format_named
from src.protocol.formats.rest import parse
from src.protocol.output_format import Reading
from src.protocol.types import ParsedResponse, Region
from src.runs.line_file import LineError, parse_line
from src.wings.reporting.inspector.comparing import Failure, failure_kind
from src.wings.reporting.inspector.episode_records import LoggedEpisode, logged_episode

log = logging.getLogger(__name__)

REWARD_PARTS = ("format", "name", "parameter_names", "parameter_values", "correctness", "exact_match")
COLUMNS = ("weights", "entropies", "rollout_logprobs", "old_logprobs", "loss_terms")
"""Numbers a token; the last two are not in files of older runs, entropies not of completions that nobody scored."""

_OPTIONAL = ("entropies", "old_logprobs", "loss_terms")
_FIELDS = frozenset((*REWARD_PARTS, *COLUMNS, "rollout_step", "completion", "reward", "advantage"))
"""Names that the numbers of a record have in any run; others are scores."""
_LABELS = frozenset(region.label for region in Region)
_HEAD = re.compile(rb'\{"rollout_step": (\d+), "example": ("(?:[^"\\]|\\.)*"), "completion": (\d+),')


class InspectorError(Refusal, ValueError):
    """Samples that cannot be shown: names the file and line or the key, what was expected and what was found."""


class NoSamplesError(InspectorError):
    """A run without any sample."""


class GroupPlace(NamedTuple):
    """Where a group's lines are: bytes `[start, stop)`, from line `line` (1 is the first)."""

    rollout_step: int
    example: str
    start: int
    stop: int
    line: int


@dataclass(frozen=True)
class LoggedCompletion:
    """A completion as it was logged; T tokens.

    Attributes:
        index: in its group.
        text: the whole response, with what the chat template wrote of it.
        reward: scaled total.
        advantage: within the group.
        parts: the reward's components by name, see `RewardParts`; None where not logged.
        finish_reason: `stop` or `length`.
        tokens: [T], text of each token.
        regions: [T], labels of `Region`.
        columns: each of `COLUMNS`, [T]; None where not logged.
        reading: how the text is read; the prefix is a part of it.
        scores: what else its reward is made of, by name: those of functions of the user, or of an environment.
        episode: turn by turn; None: the completion is one answer.
    """

    index: int
    text: str
    reward: float
    advantage: float
    parts: dict[str, float | None]
    finish_reason: str
    tokens: list[str]
    regions: list[str]
    columns: dict[str, list[float] | None]
    reading: Reading
    scores: dict[str, float] = field(default_factory=dict)
    episode: LoggedEpisode | None = None

    @cached_property
    def parsed(self) -> ParsedResponse:
        """The response by its format."""
        read = self.reading.format.parse(self.text.encode("utf-8", "surrogatepass"), self.reading.tools)
        return read.cut() if read.native and self.finish_reason == "length" else read


@dataclass(frozen=True)
class LoggedGroup:
    """A prompt and its completions as they were logged.

    Attributes:
        rollout_step: from 0.
        example: `<source>/<id>`.
        prompt: rendered, with special tokens; None where not logged.
        target: the expert's step in the output protocol.
        gold: the target's calls.
        completions: in order.
    """

    rollout_step: int
    example: str
    prompt: str | None
    target: str
    gold: tuple[ToolCall, ...]
    completions: tuple[LoggedCompletion, ...]

    @property
    def source(self) -> str:
        """Name of the corpus."""
        return self.example.partition("/")[0]

    def failure(self, completion: LoggedCompletion) -> Failure:
        """What is wrong with one of the completions."""
        if completion.episode is not None:
            ended = Failure.TRUNCATED if completion.finish_reason == "length" else Failure.NOT_DONE
            return Failure.CORRECT if completion.parts["exact_match"] == 1 else ended
        return failure_kind(
            completion.parsed,
            self.gold,
            format=completion.parts["format"] or 0.0,
            exact_match=completion.parts["exact_match"] or 0.0,
            finish_reason=completion.finish_reason,
        )


class RolloutFile:
    """The samples of a run.

    Args:
        folder: of the run.

    Raises:
        NoSamplesError: there is no `rollouts.jsonl`, or nothing in it.
        InspectorError: a line is no record.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rollouts.jsonl"
        if not self.path.is_file():
            raise NoSamplesError(
                f"'{self.path}': expected the samples of a run, found no file. Give a run folder "
                "(logs/train/runs/<time>) of a run with callbacks.rollout_log."
            )
        self.places = list(self._index())
        if not self.places:
            raise NoSamplesError(
                f"'{self.path}': expected samples, found none. Wait for the run's first rollout step, or train with a "
                "smaller callbacks.rollout_log.every_n_steps."
            )

    @property
    def steps(self) -> list[int]:
        """The rollout steps that have samples, in order."""
        return sorted({place.rollout_step for place in self.places})

    def read(self, places: Sequence[GroupPlace]) -> Iterator[LoggedGroup]:
        """The groups at these places.

        Raises:
            InspectorError: a line is not a record; names it.
        """
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place.start)
                lines = file.read(place.stop - place.start).splitlines()
                yield logged_group([self._record(line, place.line + index) for index, line in enumerate(lines)])

    def _index(self) -> Iterator[GroupPlace]:
        """A place a group: a group ends where the step or the example changes or completions are counted anew."""
        group: GroupPlace | None = None
        last = position = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                start, position = position, position + len(line)
                if not line.endswith(b"\n"):
                    log.warning("'%s': the last line is not whole yet, and left out.", self.path)
                    break
                step, example, completion = self._head(line, number)
                if group is not None and group[:2] == (step, example) and completion > last:
                    group = group._replace(stop=position)
                else:
                    if group is not None:
                        yield group
                    group = GroupPlace(step, example, start, position, number)
                last = completion
        if group is not None:
            yield group

    def _head(self, line: bytes, number: int) -> tuple[int, str, int]:
        """Rollout step, example and completion of a line."""
        if match := _HEAD.match(line):
            return int(match[1]), str(json.loads(match[2])), int(match[3])
        record = _parsed(line, self.path, number)
        return int(record["rollout_step"]), str(record["example"]), int(record["completion"])

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        record = _parsed(line, self.path, number)
        try:
            _check(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            where = f"{self.path}, line {number}"
            raise InspectorError(f"{where}: expected a logged completion, found {reason}.") from error
        return record


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line's object, with at least the keys of its place."""
    try:
        return parse_line(line, path, number, ("rollout_step", "example", "completion"))
    except LineError as error:
        raise InspectorError(str(error)) from error


def _check(record: dict[str, Any]) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError for a record that is not one."""
    size = len(record["tokens"])
    if unknown := set(record["regions"]) - _LABELS:
        raise ValueError(f"region {min(unknown)!r}; known are {sorted(_LABELS)}")
    for key in ("regions", *COLUMNS):
        if key in _OPTIONAL and record.get(key) is None:
            continue
        if len(record[key]) != size:
            raise ValueError(f"{len(record[key])} {key} of {size} tokens")
    for key in ("text", "target", "finish_reason"):
        if not isinstance(record[key], str):
            raise TypeError(f"{record[key]!r} as {key}")
    for key in ("reward", "advantage"):
        float(record[key])
    if not isinstance(record.get("prompt"), str | None):
        raise TypeError(f"{record['prompt']!r} as prompt")
    for call in record.get("gold_calls") or ():
        call["name"], call["parameters"].items()
    _reading(record)
    _episode(record)


def logged_group(records: Sequence[dict[str, Any]]) -> LoggedGroup:
    """A group from its records, as `callbacks.rollout_log.group_records` makes them."""
    first = records[0]
    gold = first.get("gold_calls")
    if gold is None:  # an older run: read back from the text
        calls = parse(first["target"]).calls or ()
    else:
        calls = tuple(ToolCall(call["name"], call["parameters"]) for call in gold)
    reading = _reading(first)
    return LoggedGroup(
        rollout_step=int(first["rollout_step"]),
        example=str(first["example"]),
        prompt=first.get("prompt"),
        target=first["target"],
        gold=calls,
        completions=tuple(_completion(record, reading) for record in records),
    )


def _reading(record: dict[str, Any]) -> Reading:
    """How the texts of a group are read, from its first record; one that names no format has the paper's."""
    tools = tuple(map(ToolSpec, record.get("tools") or ()))
    return Reading(format_named(record.get("output_format", REST.name)), tools=tools)


def _episode(record: dict[str, Any]) -> LoggedEpisode | None:
    found = record.get("episode")
    return None if found is None else logged_episode(found, len(record["tokens"]))


def _completion(record: dict[str, Any], reading: Reading) -> LoggedCompletion:
    return LoggedCompletion(
        index=int(record["completion"]),
        text=record["text"],
        reward=float(record["reward"]),
        advantage=float(record["advantage"]),
        parts={name: record.get(name) for name in REWARD_PARTS},
        finish_reason=record["finish_reason"],
        tokens=record["tokens"],
        regions=record["regions"],
        columns={name: record.get(name) for name in COLUMNS},
        reading=reading,
        scores={name: value for name, value in record.items() if name not in _FIELDS and _is_number(value)},
        episode=_episode(record),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
