"""The ids of an episode: a prompt, what was sampled and what was observed, also where its history was rewritten.

Sampled ids are never tokenised again. Ids are appended to the run that came last; where a prompt is given that writes
what came before in another way, the run is parted behind the last id that both share, and a new one begins there.
An episode that is over is its turns, its score and this history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from src.algorithm.experience import Tree
from src.environments.protocol import FAULTS, EpisodeScore
from src.protocol.dialogue import JsonValue, Message
from src.protocol.regions import DecodedCompletion
from src.rollout.engine import Completion

Ending = Literal["done", "turns", "tokens", "time", "cut", "template"]
"""Why an episode is over: its environment says so, a limit, an answer that was cut at `max_new_tokens`, or a chat
template that cannot write what was observed."""


EPISODE_COUNTS = ("turns", "rewrites", *(f"ended_{ending}" for ending in get_args(Ending)), *FAULTS)
"""Names of what is counted of an episode."""


@dataclass(slots=True)
class _Run:
    """Ids that follow another run, or the first `shared` ids of the prompt where `parent` is -1."""

    parent: int
    shared: int
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)


class History:
    """What an episode's next answer is sampled behind.

    Args:
        prompt: int64 [P], of its first answer.

    Attributes:
        rewrites: how often ids were not only appended.
    """

    def __init__(self, prompt: Tensor) -> None:
        self._prompt: list[int] = prompt.tolist()
        self._runs = [_Run(-1, len(self._prompt))]
        self._path = [0]
        self.rewrites = 0

    def __len__(self) -> int:
        """How many ids the next answer follows."""
        return self._runs[self._path[0]].shared + sum(len(self._runs[run].ids) for run in self._path)

    @property
    def ids(self) -> Tensor:
        """Int64, everything that the next answer follows."""
        return torch.tensor(self._ids())

    def append(self, ids: Sequence[int], *, sampled: bool) -> None:
        """Ids of an answer, or of what was observed after one."""
        run = self._runs[self._path[-1]]
        run.ids += ids
        run.sampled += [sampled] * len(ids)

    def rewrite(self, ids: Sequence[int]) -> None:
        """Go on from another prompt: what it shares with the ids so far stays, sampled ids among them.

        Raises:
            ValueError: it shares not even the first id.
        """
        before, shared = self._ids(), 0
        for ours, theirs in zip(before, ids, strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared == len(before):
            self.append(ids[shared:], sampled=False)
            return
        if shared == 0:
            raise ValueError(f"episode: expected a prompt that begins with token {before[0]}, found {list(ids[:1])}.")
        self.rewrites += 1
        position = min(shared, self._runs[self._path[0]].shared)
        rest = shared - position
        kept: list[int] = []
        for run in self._path:
            if rest <= 0:
                break
            size = len(self._runs[run].ids)
            kept.append(run)
            if rest < size:
                self._part(run, rest)
            rest -= size
        self._path = [*kept, len(self._runs)]
        self._runs.append(_Run(kept[-1] if kept else -1, position))
        self.append(ids[shared:], sampled=False)

    def _part(self, index: int, size: int) -> None:
        """Make the rest of a run behind its first `size` ids a run of its own, the next one in order."""
        run = self._runs[index]
        rest = _Run(index, run.shared, run.ids[size:], run.sampled[size:])
        run.ids, run.sampled = run.ids[:size], run.sampled[:size]
        for other in self._runs:
            if other.parent >= index:
                other.parent += 1
        self._runs.insert(index + 1, rest)

    def _ids(self) -> list[int]:
        found = self._prompt[: self._runs[self._path[0]].shared]
        for run in self._path:
            found += self._runs[run].ids
        return found

    @property
    def shared(self) -> int:
        """How many ids of the prompt all of the episode's histories begin with."""
        return min(run.shared for run in self._runs if run.parent < 0)

    def runs(self, shared: int) -> list[tuple[int, list[int], list[bool]]]:
        """(parent, ids, sampled) of each run with ids behind the first `shared` ids of the prompt.

        Args:
            shared: at most `History.shared`.
        """
        found: list[tuple[int, list[int], list[bool]]] = []
        places = {-1: -1}
        for index, run in enumerate(self._runs):
            if run.parent >= 0:
                parent, ids, sampled = places[run.parent], run.ids, run.sampled
            else:
                head = self._prompt[shared : run.shared]
                parent, ids, sampled = -1, head + run.ids, [False] * len(head) + run.sampled
            places[index] = parent
            if ids:
                places[index] = len(found)
                found.append((parent, ids, sampled))
        return found


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer, and what was observed before it.

    Attributes:
        observed: messages since the answer before.
        completion: as sampled.
        decoded: the same, read.
    """

    observed: tuple[Message, ...]
    completion: Completion
    decoded: DecodedCompletion

    def record(self) -> dict[str, JsonValue]:
        """What was observed, said and called, for a line of JSON."""
        return {
            "observed": [{"role": one.role, "name": one.name, "text": one.text} for one in self.observed],
            "text": self.decoded.text,
            "calls": [call.openai()["function"] for call in self.decoded.parsed.calls or ()],
            "tokens": len(self.completion.token_ids),
        }


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """An episode that is over.

    Attributes:
        turns: its answers, at least one.
        score: what it earned.
        counts: what went wrong and was answered in words, by name.
        ending: why it is over.
        history: its ids.
    """

    turns: tuple[Turn, ...]
    score: EpisodeScore
    counts: Mapping[str, int]
    ending: Ending
    history: History

    @property
    def lengths(self) -> list[int]:
        """Sampled tokens of each turn."""
        return [len(turn.completion.token_ids) for turn in self.turns]

    @property
    def earned(self) -> list[float]:
        """What each turn earned. No environment saw an answer that was cut; the only one of an episode has it all."""
        if not self.score.turns:
            return [self.score.total]
        return [*self.score.turns, *[0.0] * (len(self.turns) - len(self.score.turns))]

    def metrics(self) -> dict[str, float]:
        """Turns, histories that were rewritten, how it ended, and each of `FAULTS`: how often."""
        values = {"turns": len(self.turns), "rewrites": self.history.rewrites, **self.counts}
        values[f"ended_{self.ending}"] = 1
        return {name: float(values.get(name, 0)) for name in EPISODE_COUNTS}


def tree_of_histories(prompt: Tensor, histories: Sequence[History]) -> tuple[Tensor, Tree]:
    """What all histories of a group share of its prompt, int64 [P'], and what follows it.

    Args:
        prompt: int64 [P].
        histories: of its episodes, each of which ends with sampled ids.
    """
    shared = min(history.shared for history in histories)
    runs = [(index, *run) for index, history in enumerate(histories) for run in history.runs(shared)]
    first = [next(place for place, run in enumerate(runs) if run[0] == index) for index in range(len(histories))]
    return prompt[:shared], Tree(
        token_ids=torch.tensor([token for _, _, ids, _ in runs for token in ids]),
        sampled=torch.tensor([one for _, _, _, sampled in runs for one in sampled]),
        sizes=torch.tensor([len(ids) for _, _, ids, _ in runs]),
        parents=torch.tensor([parent if parent < 0 else first[index] + parent for index, parent, _, _ in runs]),
        completions=torch.tensor([index for index, *_ in runs]),
    )
