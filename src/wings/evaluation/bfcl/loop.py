"""A multi-turn BFCL case on its way, for `src.wings.evaluation.lock_step.play`.

Follows the package's `base_handler.inference_multi_turn_prompting`: a turn ends with the first answer without calls,
and a case is stopped once more than 20 steps of one turn were executed. A stopped case lacks turns, by which the
checker knows it (`multi_turn:force_terminated`); one stopped in its last turn lacks none and is judged by what it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from src.environments.bfcl.sandbox import Execution
from src.protocol.dialogue import ChatPrompt, JsonValue, ToolCall
from src.wings.evaluation.benchmark import Answer
from src.wings.evaluation.bfcl.dataset import Case
from src.wings.evaluation.bfcl.decoding import decode_calls
from src.wings.evaluation.bfcl.prompting import Step, Turn, TurnWording, build_prompt, turn_messages

STEP_LIMIT = 20
"""Executed steps of a turn; a case is stopped after one more (the package's MAXIMUM_STEP_LIMIT)."""


class Executor(Protocol):
    """Runs calls against a case's tools; `sandbox.Sandbox` is one."""

    def execute(self, entry: Mapping[str, JsonValue], steps: Sequence[Sequence[ToolCall]]) -> Execution:
        """Results of the last of these steps, after all before it."""
        ...


@dataclass(slots=True)
class Conversation:
    """One case: what was said in it, and what comes next.

    Attributes:
        case: what it is about.
        executor: runs the calls.
        wording: of the prompts.
        turns: finished ones and the current one.
        error_type: why it could not go on, empty if it could: `context_exceeded` (the next prompt does not fit the
            model), or the executor's `time_limit` or `memory_limit`. It has failed then, whatever it did before.
        tokens: generated in all.
        truncated: number of answers that were cut at a limit of tokens.
    """

    case: Case
    executor: Executor
    wording: TurnWording
    turns: list[Turn] = field(default_factory=list)
    error_type: str = ""
    tokens: int = 0
    truncated: int = 0

    def __post_init__(self) -> None:
        self._open_turn()

    def prompt(self) -> ChatPrompt:
        """The prompt for the next answer."""
        return build_prompt(self.case, self.turns, self.wording)

    def take(self, answer: Answer) -> bool:
        """Execute the answer's calls, or go on to the next turn if it has none; whether the case is over."""
        if answer.finish == "context":
            self.error_type = "context_exceeded"
            return True
        self.tokens += answer.tokens
        self.truncated += answer.finish == "length"
        calls = decode_calls(answer.text)
        if calls:
            return self._execute(answer.text, calls)
        self.turns[-1].steps.append(Step(answer.text))
        return not self._open_turn()

    def calls(self) -> list[list[tuple[ToolCall, ...]]]:
        """The calls of every step that made some, by turn."""
        return [[step.calls for step in turn.steps if step.calls] for turn in self.turns]

    def _execute(self, text: str, calls: tuple[ToolCall, ...]) -> bool:
        before = [step for turn in self.calls() for step in turn]
        execution = self.executor.execute(self.case.entry, [*before, calls])
        steps = self.turns[-1].steps
        steps.append(Step(text, calls, execution.results))
        self.error_type = execution.error_type
        return bool(self.error_type) or len(steps) > STEP_LIMIT

    def _open_turn(self) -> bool:
        """Whether there was another turn."""
        index = len(self.turns)
        if index == len(self.case.question):
            return False
        self.turns.append(Turn(turn_messages(self.case, index)))
        return True
