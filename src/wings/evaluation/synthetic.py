"""A benchmark without any download: whole dialogues of the embedded corpus, played with its tools.

Validation gives the policy every earlier step as the expert took it. Here the policy lives with its own steps: its
calls are executed, it sees their results, and decides itself when a turn is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from src.data.rendering import Layout, compact_prompt
from src.data.sources.synthetic.source import SyntheticSource
from src.data.templates.published import published_prompt
from src.environments.conversation import Conversation, Generate, Turn, messages_of, play
from src.environments.synthetic import SyntheticWorld
from src.protocol.dialogue import ChatPrompt, Dialogue, Message, OpenPrompt, ToolCall, ToolSpec
from src.protocol.matching import same_calls
from src.wings.evaluation.benchmark import Benchmark, Record, Sample, count_by_category, mean_by_category

PromptBuilder = Callable[[tuple[ToolSpec, ...], tuple[Message, ...]], ChatPrompt | OpenPrompt]

MAX_STEPS = 4
"""Steps with calls that a turn may take; the expert needs one."""


class SyntheticBenchmark(Benchmark):
    """Held-out synthetic dialogues; scores `overall` (share of dialogues without a mistake) and each kind's.

    A dialogue passes if in every turn the calls made equal the calls asked for, in any order, and the turn ends with a
    response. Requests are of the tenth that no training split contains, whatever its seed.
    """

    name = "synthetic"

    def __init__(self, size: int = 120, seed: int = 0, layout: Layout = "compact") -> None:
        """Nothing is generated before `samples`.

        Args:
            size: dialogues.
            seed: of the generator; the validation split of the same seed has the same dialogues.
            layout: how prompts are written, that of training (`src.data.rendering`).
        """
        self._source = SyntheticSource(seed=seed)
        self._size = size
        self._build: PromptBuilder = {"published": published_prompt, "compact": compact_prompt}.get(layout, OpenPrompt)
        self._samples: list[Sample] = []

    def samples(self) -> Sequence[Sample]:
        """The dialogues, each of the category of its kind."""
        if not self._samples:
            written = islice(self._source.dialogues("val"), self._size)
            self._samples = [Sample(dialogue.id, kind, dialogue) for dialogue, kind in written]
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Generate) -> Iterator[Record]:
        """Play all dialogues side by side."""
        dialogues = (_Played(sample, self._build) for sample in samples)
        for played in play(dialogues, generate, concurrent=max(1, len(samples))):
            yield played.record()

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """See the class."""
        scores = mean_by_category(records)
        if records:
            scores["overall"] = sum(record.passed for record in records) / len(records)
        return scores, count_by_category(records)


class _Played(Conversation):
    """One dialogue as the policy plays it; a turn with a mistake is its last."""

    def __init__(self, sample: Sample, build: PromptBuilder) -> None:
        self._dialogue: Dialogue = sample.data
        super().__init__(SyntheticWorld(self._dialogue.tools), MAX_STEPS)
        self._sample = sample
        self._build = build
        self._asked = _asked(self._dialogue)
        self.next_turn()

    def prompt(self) -> ChatPrompt | OpenPrompt:
        native = self._build is OpenPrompt
        return self._build(self._dialogue.tools, messages_of(self.turns) if native else self.history())

    def next_turn(self) -> bool:
        index = len(self.turns)
        if index:
            steps = self.turns[-1].steps
            if not same_calls([call for step in steps for call in step.calls], self._asked[index - 1][1]):
                self.error_type = f"turn {index - 1}: other calls than asked for"
            elif steps[-1].response is None:
                self.error_type = f"turn {index - 1}: no response"
        if self.error_type or index == len(self._asked):
            return False
        self.turns.append(Turn.of_user(self._asked[index][0]))
        return True

    def record(self) -> Record:
        steps = self.turns[-1].steps
        error = self.error_type or ("too many steps" if steps[-1].calls else "")
        return Record(
            id=self._sample.id,
            category=self._sample.category,
            passed=not error,
            details={
                "error": error,
                "messages": [
                    {"role": m.role, "text": m.text, "calls": [[c.name, dict(c.parameters)] for c in m.calls]}
                    for m in self.history()
                ],
            },
        )


def _asked(dialogue: Dialogue) -> list[tuple[str, list[ToolCall]]]:
    """For each turn what the user says, and the calls that this asks for."""
    turns: list[tuple[str, list[ToolCall]]] = []
    for message in dialogue.messages:
        if message.role == "user":
            turns.append((message.text, []))
        turns[-1][1].extend(message.calls)
    return turns
