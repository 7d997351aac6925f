"""A conversation: the user's turns, the policy's steps, the calls that are run. Knows tools and prompts, no terminal.

A turn is a loop as in training: the policy sees the dialogue so far and answers; calls are run and their results
appended; an answer without calls ends the turn. What happens is told as events, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from src.data.rendering import PromptRenderer
from src.protocol.dialogue import Message, ToolCall, TurnExample
from src.wings.chatting.toolboxes import Toolbox
from src.wings.evaluation.benchmark import Answer, Generate


@dataclass(frozen=True, slots=True)
class Step:
    """The policy answered."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Result:
    """A call was run."""

    call: ToolCall
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The turn did not go as it should."""

    text: str


Event = Step | Result | Notice


class Conversation:
    """What was said so far.

    Args:
        generate: the policy.
        renderer: how the dialogue becomes a prompt.
        toolbox: the tools.
        max_steps: answers with calls that a turn may have.

    Raises:
        ValueError: no step is allowed.
    """

    def __init__(self, generate: Generate, renderer: PromptRenderer, toolbox: Toolbox, max_steps: int) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, found {max_steps}.")
        self._generate = generate
        self._renderer = renderer
        self._toolbox = toolbox
        self._max_steps = max_steps
        self._history: tuple[Message, ...] = ()

    @property
    def history(self) -> tuple[Message, ...]:
        """Messages so far, oldest first."""
        return self._history

    def reset(self) -> None:
        """Forget what was said, and put the tools' world back to its beginning."""
        self._history = ()
        self._toolbox.reset()

    def say(self, text: str) -> Iterator[Event]:
        """A user's turn; runs as far as its events are asked for."""
        self._history += (Message("user", text),)
        for _ in range(self._max_steps):
            answer = self._answer()
            if answer.finish == "context":
                yield Notice("The conversation is too long for the model's context. /reset starts anew.")
                return
            yield Step(answer)
            calls = answer.parsed.calls or ()
            self._history += (Message("assistant", (answer.parsed.response or "").strip(), calls=calls),)
            if not calls:
                yield from _complaints(answer)
                return
            results = self._toolbox.run(calls)
            for call, result in zip(calls, results, strict=True):
                yield Result(call, result)
            self._history += (Message("observation", self._toolbox.observation(calls, results)),)
        yield Notice(f"Stopped after {self._max_steps} answers with calls (max_steps).")

    def _answer(self) -> Answer:
        example = TurnExample(self._toolbox.tools, self._history, Message("assistant"), "chat", "chat")
        ((_, answer),) = self._generate([self._renderer.chat_prompt(example)])
        return answer


def _complaints(answer: Answer) -> Iterator[Notice]:
    """What is wrong with an answer that ends a turn."""
    parsed = answer.parsed
    if answer.finish == "length":
        yield Notice("The answer was cut at generation.max_new_tokens.")
    elif "tool_call" in parsed.fields and parsed.calls is None:
        yield Notice("The calls are not valid JSON, one a line: none was run.")
    elif parsed.response is None:
        yield Notice("The answer has neither a call nor a response.")
