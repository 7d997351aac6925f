"""A user talks to the policy. What happens is told as events, in order; knows tools and prompts, no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from src.data.rendering import PromptRenderer
from src.environments.conversation import Answer, Conversation, Generate, Turn, messages_of
from src.environments.protocol import World
from src.protocol.dialogue import Message, OpenPrompt, ToolCall


@dataclass(frozen=True, slots=True)
class Result:
    """A call was run."""

    call: ToolCall
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The turn did not go as it should."""

    text: str


Event = Answer | Result | Notice


class Chat(Conversation):
    """What was said so far, and what the user says next.

    Args:
        generate: the policy.
        renderer: how the dialogue becomes a prompt.
        world: the tools.
        max_steps: answers with calls that a turn may have.
        opening: what every prompt begins with.

    Raises:
        ValueError: no step is allowed.
    """

    def __init__(
        self,
        generate: Generate,
        renderer: PromptRenderer,
        world: World,
        max_steps: int,
        opening: tuple[Message, ...] = (),
    ) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, found {max_steps}.")
        super().__init__(world, max_steps - 1)
        self._generate = generate
        self._renderer = renderer
        self._opening = opening

    def prompt(self) -> OpenPrompt:
        """In the layout of the policy's training."""
        native = self._renderer.layout == "native"
        said = messages_of(self.turns) if native else self.history()
        return OpenPrompt(self.world.tools, (*self._opening, *said))

    def next_turn(self) -> bool:
        """The user's, who is asked by whoever calls `say`."""
        return False

    def reset(self) -> None:
        """Forget what was said, and put the tools' world back to its beginning."""
        self.turns.clear()
        self.world.reset()

    def say(self, text: str) -> Iterator[Event]:
        """A user's turn; runs as far as its events are asked for."""
        self.turns.append(Turn.of_user(text))
        over = False
        while not over:
            ((_, answer),) = self._generate([self.prompt()])
            if answer.finish == "context":
                yield Notice("The conversation is too long for the model's context. /reset starts anew.")
                return
            yield answer
            over = self.take(answer)
            step = self.turns[-1].steps[-1]
            yield from map(Result, step.calls, step.results)
        if step.calls:
            yield Notice(f"Stopped after {self.step_limit + 1} answers with calls (max_steps).")
        else:
            yield from _complaints(answer)


def _complaints(answer: Answer) -> Iterator[Notice]:
    """What is wrong with an answer that ends a turn."""
    parsed = answer.parsed
    if answer.finish == "length":
        yield Notice("The answer was cut at generation.max_new_tokens.")
    elif "tool_call" in parsed.fields and parsed.calls is None:
        yield Notice("The calls are not well-formed: none was run.")
    elif parsed.response is None:
        yield Notice("The answer has neither a call nor a response.")
