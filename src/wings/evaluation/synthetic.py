"""A benchmark without any download: whole dialogues of the embedded corpus, played with its tools.

Validation gives the policy every earlier step as the expert took it. Here the policy lives with its own steps: its
calls are executed, it sees their results, and decides itself when a turn is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from src.data.rendering import Layout, compact_prompt, published_prompt
from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import SyntheticSource, execute
from src.protocol.dialogue import ChatPrompt, Dialogue, JsonValue, Message, ToolCall, ToolSpec
from src.protocol.matching import same_calls
from src.wings.evaluation.benchmark import (
    Answer,
    Generate,
    Record,
    SampledBenchmark,
    count_by_category,
    mean_by_category,
)
from src.wings.evaluation.lock_step import play
from src.wings.evaluation.samples import Sample

PromptBuilder = Callable[[Sequence[ToolSpec], Sequence[Message]], ChatPrompt]

MAX_STEPS = 4
"""Steps with calls that a turn may take; the expert needs one."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A user message and the calls that it asks for."""

    user: Message
    gold: tuple[ToolCall, ...]


class SyntheticBenchmark(SampledBenchmark):
    """Held-out synthetic dialogues; scores `overall` (share of dialogues without a mistake) and each kind's.

    A dialogue passes if in every turn the calls made equal the calls asked for, in any order, and the turn ends with a
    response. Requests are of the tenth that no training split contains, whatever its seed.
    """

    name = "synthetic"

    def __init__(self, size: int = 120, seed: int = 0, layout: Layout = "compact") -> None:
        """Nothing is generated before `prepare`.

        Args:
            size: dialogues.
            seed: of the generator; the validation split of the same seed has the same dialogues.
            layout: how prompts are written, that of training (`src.data.rendering`).
        """
        self._source = SyntheticSource(seed=seed)
        self._size = size
        self._build = published_prompt if layout == "published" else compact_prompt
        self._samples: list[Sample] = []

    def samples(self) -> Sequence[Sample]:
        """The dialogues, each of the category of its kind."""
        if not self._samples:
            written = islice(self._source.dialogues("val"), self._size)
            self._samples = [Sample(dialogue.id, kind, dialogue) for dialogue, kind in written]
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Generate) -> Iterator[Record]:
        """Play all dialogues side by side."""
        episodes = (_Episode(sample, self._build) for sample in samples)
        for episode in play(episodes, generate, concurrent=max(1, len(samples))):
            yield episode.record()

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """See the class."""
        scores = mean_by_category(records)
        if records:
            scores["overall"] = sum(record.passed for record in records) / len(records)
        return scores, count_by_category(records)


class _Episode:
    """One dialogue as the policy plays it."""

    def __init__(self, sample: Sample, build: PromptBuilder) -> None:
        self._sample = sample
        self._build = build
        self._dialogue: Dialogue = sample.data
        self._offered = {tool.name for tool in self._dialogue.tools}
        self._turns = _turns(self._dialogue)
        self._history = [self._turns[0].user]
        self._turn = 0
        self._steps = 0
        self._made: list[ToolCall] = []
        self._error = ""

    def prompt(self) -> ChatPrompt:
        return self._build(self._dialogue.tools, self._history)

    def take(self, answer: Answer) -> bool:
        calls = answer.parsed.calls or ()
        self._history.append(Message("assistant", (answer.parsed.response or "").strip(), calls=calls))
        if calls:
            self._made += calls
            self._steps += 1
            self._error = "too many steps" if self._steps > MAX_STEPS else ""
            self._history.append(Message("observation", self._execute(calls)))
            return bool(self._error)
        return self._end_turn(answer)

    def record(self) -> Record:
        return Record(
            id=self._sample.id,
            category=self._sample.category,
            passed=not self._error,
            details={
                "error": self._error,
                "messages": [
                    {"role": m.role, "text": m.text, "calls": [[c.name, dict(c.parameters)] for c in m.calls]}
                    for m in self._history
                ],
            },
        )

    def _end_turn(self, answer: Answer) -> bool:
        if not same_calls(tuple(self._made), self._turns[self._turn].gold):
            self._error = f"turn {self._turn}: other calls than asked for"
        elif answer.parsed.response is None:
            self._error = f"turn {self._turn}: no response"
        self._turn += 1
        if self._error or self._turn == len(self._turns):
            return True
        self._made, self._steps = [], 0
        self._history.append(self._turns[self._turn].user)
        return False

    def _execute(self, calls: Sequence[ToolCall]) -> str:
        return observation([run(call, self._offered) for call in calls])


def run(call: ToolCall, offered: Collection[str]) -> JsonValue:
    """What a call of a synthetic tool returns; an error where the tool is not on offer.

    >>> run(ToolCall("get_weather", {"city": "Oslo", "day": "May 1"}), {"get_weather"}).keys()
    dict_keys(['sky', 'degrees'])
    >>> run(ToolCall("get_whether", {}), {"get_weather"})
    {'error': 'no tool get_whether'}
    """
    return execute(call, TRAINING_DOMAINS) if call.name in offered else {"error": f"no tool {call.name}"}


def observation(results: Sequence[JsonValue]) -> str:
    """Results of a step's calls as the policy reads them: that of a single call without a list around it.

    >>> observation([{"sky": "sunny"}]), observation([1, 2])
    ('{"sky": "sunny"}', '[1, 2]')
    """
    return json.dumps(results[0] if len(results) == 1 else results)


def _turns(dialogue: Dialogue) -> list[_Turn]:
    turns: list[_Turn] = []
    for message in dialogue.messages:
        if message.role == "user":
            turns.append(_Turn(message, ()))
        elif message.calls:
            turns[-1] = _Turn(turns[-1].user, turns[-1].gold + message.calls)
    return turns
