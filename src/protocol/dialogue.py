"""Tool dialogues and the single-step examples that they are split into.

The corpus-independent vocabulary of the data room. A source yields `Dialogue` or `TurnExample`; everything after the
split sees `TurnExample` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JsonValue = Any
"""A value that `json.loads` can return: None, bool, int, float, str, list or dict of the same."""


THOUGHT_OF_CALLS = "I should use the appropriate tool with proper parameters to respond to the user's need."
THOUGHT_OF_RESPONSE = "I should directly respond to the user's need."
"""The published data's stand-ins for a thought that is not known."""


class DataError(ValueError):
    """A record that cannot be used: names file, line or index, field, what was expected and what was found."""

    def __init__(self, where: str, field: str, expected: str, found: object, advice: str = "") -> None:
        shown = repr(found)
        shown = shown if len(shown) <= 200 else shown[:200] + "…"
        super().__init__(
            f"{where}: field '{field}': expected {expected}, found {shown}." + (f" {advice}" if advice else "")
        )


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the prompt offers. `parameters` maps a parameter's name to its JSON-schema-like description."""

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, JsonValue]]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: a tool's name and its arguments as parsed JSON."""

    name: str
    parameters: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue.

    `user` and `observation` messages use `text`. An `assistant` message is one step: an optional thought, calls, and
    an optional response in `text` (empty: none).
    """

    role: Literal["user", "assistant", "observation"]
    text: str = ""
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole multi-turn dialogue with the tools that are on offer in it."""

    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    source: str
    id: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The two chat messages of a prompt, before the model's chat template."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class TurnExample:
    """One step to learn: everything before an assistant step, and that step.

    Attributes:
        tools: tools on offer. Empty where `prompt` is given verbatim.
        history: the messages before the target, oldest first. Empty where `prompt` is given verbatim.
        target: the assistant step (role `assistant`, with calls, a response, or both).
        source: name of the corpus.
        id: unique within the source.
        prompt: the already rendered prompt of a corpus that publishes prompts rather than dialogues (`rlla`).
        tags: what kind of step this is, for metrics by kind (e.g. `parallel`, `refusal`).
    """

    tools: tuple[ToolSpec, ...]
    history: tuple[Message, ...]
    target: Message
    source: str
    id: str
    prompt: ChatPrompt | None = None
    tags: tuple[str, ...] = field(default=())


def split_turns(dialogue: Dialogue) -> list[TurnExample]:
    """Split a dialogue with K assistant steps into K single-step examples (paper, section 4.1).

    The input of example k is every message before the k-th assistant step, the target is that step. Observations
    appear in inputs only. Consecutive assistant messages are one step: calls come before the response, so a response
    directly after calls (no observation between) joins them in one target.

    >>> user = Message("user", "Weather in Oslo?")
    >>> call = Message("assistant", calls=(ToolCall("get_weather", {"city": "Oslo"}),))
    >>> seen = Message("observation", '{"sky": "clear"}')
    >>> answer = Message("assistant", "It is clear.")
    >>> examples = split_turns(Dialogue((), (user, call, seen, answer), "doc", "0"))
    >>> [len(e.history) for e in examples], [bool(e.target.calls) for e in examples]
    ([1, 3], [True, False])

    Raises:
        DataError: an assistant step without calls and without a response, or one before any user message.
    """
    steps = _merge_assistant_steps(dialogue)
    examples: list[TurnExample] = []
    for index, message in enumerate(steps):
        if message.role != "assistant":
            continue
        where = f"{dialogue.source}[{dialogue.id}]"
        if not message.calls and not message.text:
            raise DataError(where, f"messages[{index}]", "an assistant step with calls or a response", message)
        if index == 0:
            raise DataError(where, "messages[0]", "a user message before the first assistant step", message)
        examples.append(
            TurnExample(
                tools=dialogue.tools,
                history=steps[:index],
                target=message,
                source=dialogue.source,
                id=f"{dialogue.id}/{len(examples)}",
            )
        )
    return examples


def _merge_assistant_steps(dialogue: Dialogue) -> tuple[Message, ...]:
    """Join an assistant message with calls and a directly following one with a response only."""
    merged: list[Message] = []
    for message in dialogue.messages:
        previous = merged[-1] if merged else None
        joins = (
            previous is not None
            and previous.role == message.role == "assistant"
            and bool(previous.calls)
            and not previous.text
            and not message.calls
        )
        if joins and previous is not None:
            thought = "\n".join(part for part in (previous.thought, message.thought) if part)
            merged[-1] = Message("assistant", message.text, thought, previous.calls)
        else:
            merged.append(message)
    return tuple(merged)
