"""Conversations between a policy and a world: the policy answers, its calls are run, it sees their results.

An answer without calls ends a turn. Benchmarks and chat are subclasses, which say how a prompt is written and where the
next turn comes from; `play` holds many conversations side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

from src.environments.protocol import LimitError, World
from src.protocol.dialogue import ChatPrompt, Message, OpenPrompt, ToolCall
from src.protocol.formats.rest import parse, step_text
from src.protocol.types import ParsedResponse

_ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one prompt.

    Attributes:
        text: the whole response, the part that the chat template wrote included.
        parsed: the same, read by the policy's format.
        tokens: number of generated tokens.
        finish: `stop`, `length` (cut at the limit of new tokens or of the context), or `context` (the prompt alone
            does not fit the model: nothing was generated).
    """

    text: str
    parsed: ParsedResponse
    tokens: int = 0
    finish: str = "stop"

    @classmethod
    def of(cls, text: str) -> Answer:
        """A given text as an answer.

        >>> Answer.of("<think> Hm. </think>").parsed.thought
        ' Hm. '
        """
        return cls(text, parse(text))

    @property
    def published(self) -> str:
        """The text; of a model's own format what it says, in the paper's, which judges of published results read."""
        if not self.parsed.native:
            return self.text
        response, thought = self.parsed.response or "", self.parsed.thought or ""
        return step_text(Message("assistant", response, thought.strip(), self.parsed.calls or ()))


class Generate(Protocol):
    """Answers prompts."""

    def __call__(self, prompts: Sequence[ChatPrompt | OpenPrompt]) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the prompt, its answer), each once, in any order, as batches finish."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One answer within a turn.

    Attributes:
        text: of the answer.
        calls: that it makes.
        results: of the calls; none where there is no call, or where they could not be run.
        response: what the answer says to the user, if it says something.
        thought: what it thinks.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    results: tuple[str, ...] = ()
    response: str | None = None
    thought: str | None = None


@dataclass(slots=True)
class Turn:
    """The given chat messages (role and content) that open a turn, and the model's steps so far."""

    messages: Sequence[Mapping[str, str]]
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of_user(cls, text: str) -> Turn:
        """A turn that a user opens."""
        return cls([{"role": "user", "content": text}])


class Conversation(ABC):
    """What was said so far, and what comes next.

    Args:
        world: runs the calls.
        step_limit: steps with calls that a turn may have; one more ends the conversation.

    Attributes:
        turns: finished ones and the current one.
        error_type: why it could not go on, empty if it could: `context_exceeded` (the next prompt does not fit the
            model), or a limit of the world.
        tokens: generated in all.
        truncated: number of answers that were cut at a limit of tokens.
    """

    def __init__(self, world: World, step_limit: int) -> None:
        self.world = world
        self.step_limit = step_limit
        self.turns: list[Turn] = []
        self.error_type = ""
        self.tokens = 0
        self.truncated = 0

    @abstractmethod
    def prompt(self) -> ChatPrompt | OpenPrompt:
        """The prompt for the next answer."""

    @abstractmethod
    def next_turn(self) -> bool:
        """Open the next turn; False where there is none."""

    def calls_of(self, answer: Answer) -> tuple[ToolCall, ...]:
        """The calls that an answer makes."""
        return answer.parsed.calls or ()

    def take(self, answer: Answer) -> bool:
        """Run the answer's calls, or go on to the next turn if it has none; whether the conversation is over."""
        if answer.finish == "context":
            self.error_type = "context_exceeded"
            return True
        self.tokens += answer.tokens
        self.truncated += answer.finish == "length"
        parsed = answer.parsed
        step = Step(answer.text, self.calls_of(answer), response=parsed.response, thought=parsed.thought)
        steps = self.turns[-1].steps
        steps.append(step)
        if not step.calls:
            return not self.next_turn()
        try:
            steps[-1] = replace(step, results=tuple(self.world.run(step.calls)))
        except LimitError as error:
            self.error_type = error.limit
            return True
        return len(steps) > self.step_limit

    def calls(self) -> list[list[tuple[ToolCall, ...]]]:
        """The calls of every step that made some, by turn."""
        return [[step.calls for step in turn.steps if step.calls] for turn in self.turns]

    def history(self) -> tuple[Message, ...]:
        """The users' messages, the steps and what the policy observed, oldest first."""
        found: list[Message] = []
        for turn in self.turns:
            found += [Message("user", message["content"]) for message in turn.messages if message["role"] == "user"]
            for step in turn.steps:
                found.append(Message("assistant", (step.response or "").strip(), calls=step.calls))
                if step.results:
                    found += self.world.observations(step.calls, step.results)
        return tuple(found)


def messages_of(turns: Iterable[Turn]) -> tuple[Message, ...]:
    """All that was said: given messages in their roles, steps with their thoughts, a message for each result."""
    found: list[Message] = []
    for turn in turns:
        found += [Message(_ROLES[given["role"]], given["content"]) for given in turn.messages]
        for step in turn.steps:
            found.append(
                Message("assistant", (step.response or "").strip(), (step.thought or "").strip(), calls=step.calls)
            )
            found += [
                Message("observation", result, name=call.name)
                for call, result in zip(step.calls, step.results, strict=bool(step.results))
            ]
    return tuple(found)


C = TypeVar("C", bound=Conversation)


def play(conversations: Iterable[C], generate: Generate, *, concurrent: int) -> Iterator[C]:
    """Play conversations to their ends; each is yielded when it is over, and the next one takes its place.

    Args:
        conversations: made when there is room for them.
        generate: asked once a step, for all conversations that are going.
        concurrent: most conversations at once.
    """
    waiting = iter(conversations)
    going: list[C] = []
    while True:
        going += [conversation for _, conversation in zip(range(concurrent - len(going)), waiting, strict=False)]
        if not going:
            return
        answers = dict(generate([conversation.prompt() for conversation in going]))
        unfinished = []
        for index, conversation in enumerate(going):
            if conversation.take(answers[index]):
                yield conversation
            else:
                unfinished.append(conversation)
        going = unfinished
