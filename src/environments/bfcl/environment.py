"""BFCL's multi-turn cases as tasks: its backends behind the sandbox, its users' turns, its checker as the score."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from src.environments.bfcl.cases import Case, choose_categories, is_multi_turn, load_cases
from src.environments.bfcl.sandbox import Sandbox
from src.environments.bfcl.world import CaseWorld, turn_messages
from src.environments.protocol import EpisodeScore, LimitError, Opening, Task
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.types import ParsedResponse

log = logging.getLogger(__name__)

_UNREADABLE = '{"error": "the calls cannot be read"}'
_LIMITS = {"time_limit": "timeout", "memory_limit": "tool_died"}


class BfclEnvironment:
    """See `Environment`. Without `train_on_test` there is the split `test` alone, to evaluate on.

    Args:
        categories: multi-turn ones, or their group `multi_turn`.
        train_on_test: train on these test cases, on nine tenths of them; `val` has the others. What BFCL says of the
            policy is worth nothing then.
        time_limit: seconds for the calls of one case.
        memory_limit_mb: MiB for them.
        seed: of the division.

    Raises:
        ConfigError: an unknown category, or one of a single turn.
        ValueError: a limit that leaves no room.
    """

    name = "bfcl"
    parts = ("passed",)
    concurrent = 1

    def __init__(
        self,
        categories: Sequence[str] = ("multi_turn",),
        train_on_test: bool = False,
        time_limit: float = 10.0,
        memory_limit_mb: int = 1024,
        seed: int = 0,
    ) -> None:
        self._categories = choose_categories(categories)
        if single := [name for name in self._categories if not is_multi_turn(name)]:
            raise ConfigError(f"environment.categories: expected multi-turn ones, found {', '.join(single)}.")
        self._train_on_test, self._seed = train_on_test, seed
        self._sandbox = Sandbox(time_limit=time_limit, memory_limit_mb=memory_limit_mb)
        self._cases: dict[str, Case] = {}

    def splits(self) -> tuple[str, ...]:
        """See `Environment`."""
        return ("train", "val") if self._train_on_test else ("test",)

    def tasks(self, split: str) -> Sequence[Task]:
        """See `Environment`. The tag of a task is its category.

        Raises:
            ConfigError: training without `train_on_test`.
            BenchmarkDataError: bfcl-eval is not installed.
        """
        if split not in self.splits():
            raise ConfigError(
                f"environment=bfcl: expected one of the splits {self.splits()}, found '{split}'. These are the cases "
                "that BFCL tests with: to train on them all the same, set environment.train_on_test=true."
            )
        if split == "train":
            log.warning("Training on BFCL's test cases: its scores say nothing about this policy.")
        cases = list(self._loaded().values())
        if split != "test":
            random.Random(self._seed).shuffle(cases)
            held_out = max(1, len(cases) // 10)
            cases = cases[held_out:] if split == "train" else cases[:held_out]
        return [Task(case.id, {"case": case.id}, (case.category,)) for case in cases]

    def opening(self, task: Task) -> Opening:
        """See `Environment`."""
        return Opening.of(self.start(task, 0))

    def start(self, task: Task, seed: int) -> BfclEpisode:
        """See `Environment`. The seed changes nothing."""
        return BfclEpisode(self._loaded()[str(task.row["case"])], self._sandbox)

    def close(self) -> None:
        """End the sandbox's process; a later episode starts it again."""
        self._sandbox.close()

    def _loaded(self) -> dict[str, Case]:
        if not self._cases:
            self._cases = {case.id: case for name in self._categories for case in load_cases(name)}
        return self._cases


class BfclEpisode:
    """See `Episode`. An answer without calls ends a turn; the official checker judges all calls at the end.

    Args:
        case: of several turns.
        sandbox: executes and judges.
    """

    def __init__(self, case: Case, sandbox: Sandbox) -> None:
        self._case, self._sandbox = case, sandbox
        self._world = CaseWorld(case, sandbox)
        self.tools = self._world.tools
        self.done = False
        self._wrong: Counter[str] = Counter()
        self.counts: Mapping[str, int] = self._wrong
        self._turns: list[list[tuple[ToolCall, ...]]] = [[]]
        self._new = self._given(0)
        self._answers = 0
        self._failed = False

    def observe(self) -> tuple[Message, ...]:
        """See `Episode`."""
        new, self._new = self._new, ()
        return new

    def act(self, answer: ParsedResponse) -> None:
        """See `Episode`."""
        self._answers += 1
        if answer.calls:
            self._run(answer.calls)
        elif answer.unreadable:
            self._wrong["malformed"] += 1
            self._new = (Message("observation", _UNREADABLE),)
        elif len(self._turns) == len(self._case.question):
            self.done = True
        else:
            self._new = self._given(len(self._turns))
            self._turns.append([])

    def _run(self, calls: tuple[ToolCall, ...]) -> None:
        try:
            results = self._world.run(calls)
        except LimitError as error:
            self._wrong[_LIMITS[error.limit]] += 1
            self.done = self._failed = True
            return
        self._turns[-1].append(calls)
        pairs = zip(calls, results, strict=True)
        self._new = tuple(Message("observation", text, name=call.name, call_id=call.id) for call, text in pairs)

    def _given(self, turn: int) -> tuple[Message, ...]:
        return tuple(
            Message("system" if given["role"] == "system" else "user", given["content"])
            for given in turn_messages(self._case, turn)
        )

    def score(self) -> EpisodeScore:
        """See `Episode`. The last answer earns it all: the official checker knows no halves."""
        verdict = None
        if self.done and not self._failed:
            verdict = self._sandbox.check_multi_turn(self._case.entry, self._case.answer, self._turns)
        passed = float(verdict is not None and verdict.passed)
        turns = (*[0.0] * (self._answers - 1), passed)[-self._answers :] if self._answers else ()
        return EpisodeScore(passed, {"passed": passed}, turns, passed == 1.0)

    def close(self) -> None:
        """Nothing to give back: the sandbox is the environment's."""
