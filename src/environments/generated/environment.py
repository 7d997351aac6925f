"""Worlds with a state that are generated from a seed, and what a play in one of them earns."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from itertools import count

from src.data.sources.base import generated_split, generator_splits, kind_shares
from src.environments.generated.author import KINDS, Author, domains_of
from src.environments.generated.domains import Store
from src.environments.generated.scenario import CallError, Scenario
from src.environments.protocol import EpisodeScore, Opening, Task
from src.protocol.dialogue import JsonValue, Message, ToolCall
from src.protocol.types import ParsedResponse

HARM = 0.5
"""The cost of each call that changes a field to a value that it never has in the right play."""

_STEPS = 2**20
"""Values are rounded to multiples of 1 / 2²⁰, so that their differences sum to the last one exactly."""

_CODE = re.compile(r"\w*\d\w*")
_Key = tuple[str, tuple[tuple[str, JsonValue], ...]]
_Field = tuple[str, str]


def call_key(call: ToolCall) -> _Key:
    """A call that ran, for comparison: arguments in any order are the same."""
    return call.name, tuple(sorted(call.parameters.items()))


def fields(store: Store) -> dict[_Field, JsonValue]:
    """Every value of a store by id and field."""
    return {(id, key): value for id, record in store.items() for key, value in record.items()}


def changes(before: Mapping[_Field, JsonValue], after: Mapping[_Field, JsonValue]) -> dict[_Field, JsonValue]:
    """Values that differ or are new; no record is ever deleted."""
    return {key: value for key, value in after.items() if before.get(key) != value}


class Checker:
    """The goals of a scenario, found by its right play, and which of them another play has reached.

    Goals are the calls that only read, the fields that change, and for each turn of the user's the words that end it,
    said when the world is as it should be and naming what was asked for.

    Args:
        scenario: see `Scenario`.

    Attributes:
        harms: number of calls so far that cost `HARM`.
    """

    def __init__(self, scenario: Scenario) -> None:
        store = deepcopy(scenario.records)
        self._scenario = scenario
        self._start = fields(store)
        self._path: dict[_Field, set[JsonValue]] = {}
        self._lookups: set[_Key] = set()
        self._calls: set[_Key] = set()
        self._states = []
        for turn in scenario.turns:
            for call in (call for step in turn.steps for call in step.calls):
                before = fields(store)
                try:
                    scenario.run(store, call)
                except CallError:
                    continue
                changed = changes(before, fields(store))
                for field, value in changed.items():
                    self._path.setdefault(field, set()).add(value)
                self._calls.add(call_key(call))
                if not changed:
                    self._lookups.add(call_key(call))
            self._states.append(fields(store))
        self._wanted = changes(self._start, self._states[-1])
        self._made: set[_Key] = set()
        self._said: set[int] = set()
        self._now = self._start
        self.harms = 0

    def ran(self, call: ToolCall, store: Store) -> None:
        """Take a call that ran, and the store behind it."""
        before, self._now = self._now, fields(store)
        self._made.add(call_key(call))
        self.harms += any(
            value not in self._path.get(field, ()) and not self._mends(field, before.get(field), value)
            for field, value in changes(before, self._now).items()
        )

    def _mends(self, field: _Field, before: JsonValue, value: JsonValue) -> bool:
        """Whether a wrong value was put back to what it was in the beginning."""
        return value == self._start.get(field) and before not in self._path.get(field, ())

    def said(self, turn: int, words: str) -> None:
        """Take the words that end a turn of the user's."""
        right = self._scenario.turns[turn]
        if words and self._now == self._states[turn] and self._names(words, right.wanted, right.rivals):
            self._said.add(turn)

    def _names(self, words: str, wanted: Collection[str], rivals: Collection[str]) -> bool:
        """Whether words name what is wanted and no rival; a number's or a code's are all that the user did not say."""
        if not all(_occurs(value, words) for value in wanted) or any(_occurs(value, words) for value in rivals):
            return False
        codes = _CODE.findall(" ".join(wanted))
        said = " ".join(turn.user for turn in self._scenario.turns)
        return not codes or {*codes, *_CODE.findall(said)}.issuperset(_CODE.findall(words))

    def value(self) -> float:
        """What the play is worth so far, in [0, 1]; 1 only if all goals are reached without harm."""
        reached = len(self._lookups & self._made) + self._changed() + len(self._said)
        share = reached / (len(self._lookups) + len(self._wanted) + len(self._states))
        return max(0.0, round(share * _STEPS) / _STEPS - HARM * self.harms)

    def parts(self) -> dict[str, float]:
        """What the value is made of, each in [0, 1].

        `state`: right changes by all made or wanted. `calls`: needed ones that ran, by those and harmful ones.
        `answer`: turns that ended in the right words.
        """
        extra = len(changes(self._states[-1], self._now).keys() - self._wanted.keys())
        return {
            "state": _ratio(self._changed(), len(self._wanted) + extra),
            "calls": _ratio(len(self._calls & self._made), len(self._calls) + self.harms),
            "answer": len(self._said) / len(self._states),
        }

    def _changed(self) -> int:
        return sum(self._now.get(field) == value for field, value in self._wanted.items())


def _ratio(count: int, of: int) -> float:
    return count / of if of else 1.0


def _occurs(value: str, words: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(value)}(?!\w|[.,]\d)", words, re.IGNORECASE) is not None


class GeneratedEpisode:
    """See `Episode`. Ends when the last turn of the user's is answered in words, right or wrong.

    Args:
        scenario: is not changed.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.tools = tuple(tool.spec for tool in scenario.tools.values())
        self.done = False
        self._wrong: Counter[str] = Counter()
        self.counts: Mapping[str, int] = self._wrong
        self._scenario, self._store = scenario, deepcopy(scenario.records)
        self._checker = Checker(scenario)
        self._turn = 0
        self._new = [Message("user", scenario.turns[0].user)]
        self._value = 0.0
        self._earned: list[float] = []

    def observe(self) -> tuple[Message, ...]:
        """See `Episode`."""
        new, self._new = self._new, []
        return tuple(new)

    def act(self, answer: ParsedResponse) -> None:
        """See `Episode`. An answer after the end does nothing and earns nothing."""
        if not self.done:
            if answer.calls:
                self._new += [self._result(call) for call in answer.calls]
            elif answer.unreadable:
                self._wrong["malformed"] += 1
                self._new.append(Message("observation", json.dumps({"error": "cannot read the calls"})))
            else:
                self._hear((answer.response or "").strip())
        value = self._checker.value()
        self._earned.append(value - self._value)
        self._value = value

    def _result(self, call: ToolCall) -> Message:
        try:
            found = self._scenario.run(self._store, call)
            self._checker.ran(call, self._store)
        except CallError as error:
            self._wrong[error.count] += 1
            found = {"error": error.text}
        return Message("observation", json.dumps(found), name=call.name, call_id=call.id)

    def _hear(self, words: str) -> None:
        self._checker.said(self._turn, words)
        self._turn += 1
        self.done = self._turn == len(self._scenario.turns)
        if not self.done:
            self._new.append(Message("user", self._scenario.turns[self._turn].user))

    def score(self) -> EpisodeScore:
        """See `Episode`. A success has a total of 1."""
        return EpisodeScore(self._value, self._checker.parts(), tuple(self._earned), self._value == 1.0)

    def close(self) -> None:
        """Nothing to give back."""


class GeneratedEnvironment:
    """See `Environment`. Splits: `train`; `val`, new worlds of the same words; `val_unseen`, words never trained on.

    Args:
        num_train: tasks of `train`.
        num_val: tasks of `val` and of `val_unseen`.
        seed: of the generator.
        kinds: share of each kind of task; default equal shares of `KINDS`.
        invented: share of words that are made of random letters.

    Raises:
        ConfigError: a count below 1, or an unknown kind.
    """

    name = "generated"
    parts = ("state", "calls", "answer")
    concurrent = 1

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 200,
        seed: int = 0,
        kinds: Mapping[str, float] | None = None,
        invented: float = 0.35,
    ) -> None:
        self._counts = generator_splits(num_train, num_val)
        self._kinds = kind_shares(kinds, dict.fromkeys(KINDS, 1.0))
        self._seed, self._invented = seed, invented

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, `train` first."""
        return tuple(self._counts)

    def tasks(self, split: str) -> Sequence[Task]:
        """See `Environment`. The tag of a task is its kind.

        Raises:
            ValueError: unknown split.
        """
        return generated_split(self._counts, split, lambda split: (self.task(split, index) for index in count()))

    def task(self, split: str, index: int) -> Task:
        """One task of the endless sequence of which `tasks` returns the beginning."""
        rng = random.Random(f"{self._seed}/{split}/{index}/task")
        (kind,) = rng.choices(list(self._kinds), weights=list(self._kinds.values()))
        row = {"seed": f"{self._seed}/{split}/{index}", "kind": kind, "domain": rng.choice(domains_of(kind))}
        return Task(f"{split}/{index}", {**row, "world": "unseen" if split == "val_unseen" else "train"}, (kind,))

    def scenario(self, task: Task) -> Scenario:
        """The world of a task and its right play."""
        row = task.row
        return Author(random.Random(row["seed"]), row["world"], row["domain"], self._invented).write(row["kind"])

    def opening(self, task: Task) -> Opening:
        """See `Environment`."""
        return Opening.of(self.start(task, 0))

    def start(self, task: Task, seed: int) -> GeneratedEpisode:
        """See `Environment`. All plays of a task begin in the same world, whatever the seed."""
        return GeneratedEpisode(self.scenario(task))

    def close(self) -> None:
        """Nothing to give back."""
