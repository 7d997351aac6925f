"""Tool dialogues and the single-step examples that they are split into.

The corpus-independent vocabulary of the data room. A source yields `Dialogue` or `TurnExample`; everything after the
split sees `TurnExample` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from src.errors import Refusal

JsonValue = Any
"""A value that `json.loads` can return: None, bool, int, float, str, list or dict of the same."""


THOUGHT_OF_CALLS = "I should use the appropriate tool with proper parameters to respond to the user's need."
THOUGHT_OF_RESPONSE = "I should directly respond to the user's need."
"""The published data's stand-ins for a thought that is not known."""


class DataError(Refusal, ValueError):
    """A record that cannot be used: names file, line or index, field, what was expected and what was found."""

    def __init__(self, where: str, field: str, expected: str, found: object, advice: str = "") -> None:
        shown = repr(found)
        shown = shown if len(shown) <= 200 else shown[:200] + "…"
        super().__init__(
            f"{where}: field '{field}': expected {expected}, found {shown}." + (f" {advice}" if advice else "")
        )


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the prompt offers.

    Parameters are a JSON schema (`{"type": "object", "properties": {"city": {…}}}`), or bare, as xLAM has them
    (`{"city": {…}}`). OpenAI's wrapping, `{"type": "function", "function": {…}}`, is read through.

    Attributes:
        json: the tool as it came; the attributes below are read from it.
        filled: in the published prompt each parameter begins with description, type and default, as in the published
            data; what the tool lacks of these is empty, or a string.
        name: of the tool.
        description: empty where there is none.
        parameters: a parameter's name to its description.
        required: names of the parameters that every call must have.
        open: whether calls may have other parameters (`additionalProperties`).
    """

    json: Mapping[str, JsonValue]
    filled: bool = False
    name: str = field(init=False, compare=False)
    description: str = field(init=False, compare=False)
    parameters: Mapping[str, Mapping[str, JsonValue]] = field(init=False, compare=False)
    required: tuple[str, ...] = field(init=False, compare=False)
    open: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        function = _function(self.json)
        schema = function.get("parameters") or function.get("input_schema") or {}
        found = (schema.get("properties") or {}) if is_schema(schema) else schema
        required = schema.get("required") if is_schema(schema) else None
        required = required if isinstance(required, list) else []
        for name, value in {
            "name": function["name"],
            "description": str(function.get("description") or ""),
            "parameters": {name: about if isinstance(about, Mapping) else {} for name, about in found.items()},
            "required": tuple(name for name in found if name in required),
            "open": is_schema(schema) and bool(schema.get("additionalProperties")),
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, name: str, description: str, parameters: Mapping[str, Mapping[str, JsonValue]]) -> ToolSpec:
        """A tool whose parameters are all optional."""
        schema = {"type": "object", "properties": dict(parameters)}
        return cls({"name": name, "description": description, "parameters": schema})

    def published_parameters(self) -> dict[str, dict[str, JsonValue]]:
        """The parameters as the published prompt shows them; see `filled`."""
        head = {"description": "", "type": "string", "default": ""} if self.filled else {}
        untyped = {key: value for key, value in head.items() if key != "type"}  # a schema may say it in another way
        return {
            name: {**(head if "type" in about or about.keys().isdisjoint(_TYPED_BY) else untyped), **about}
            for name, about in self.parameters.items()
        }

    def renamed(self, name: str, description: str, parameters: Mapping[str, str]) -> ToolSpec:
        """The tool with another name and description, and with new names of its parameters by their old ones."""
        function = dict(_function(self.json))
        schema = function.get("parameters") or function.pop("input_schema", None) or {}
        renamed: dict[str, JsonValue] = {parameters.get(key, key): about for key, about in self.parameters.items()}
        if is_schema(schema):
            renamed = {**schema, "properties": renamed, "required": [parameters.get(key, key) for key in self.required]}
        return ToolSpec({**function, "name": name, "description": description, "parameters": renamed}, self.filled)


_TYPED_BY = ("anyOf", "oneOf", "allOf", "$ref", "enum", "const")


def _function(tool: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    wrapped = tool.get("function")
    return wrapped if isinstance(wrapped, Mapping) else tool


def is_schema(parameters: Mapping[str, Any]) -> bool:
    """Whether these are a JSON schema, not parameters by name, each of which is an object with texts in it.

    >>> is_schema({"type": "object"}), is_schema({"properties": None}), is_schema({"properties": {"a": {}}})
    (True, True, True)
    >>> is_schema({"properties": {"description": "of the house", "type": "string"}}), is_schema({"type": {}})
    (False, False)
    """
    if isinstance(parameters.get("type"), str):
        return True
    properties = parameters.get("properties", False)
    described = isinstance(properties, Mapping) and all(isinstance(one, Mapping | bool) for one in properties.values())
    return properties is None or described


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: a tool's name and its arguments as parsed JSON; `id`, by which results refer to it, may be empty."""

    name: str
    parameters: Mapping[str, JsonValue]
    id: str = field(default="", compare=False, repr=False)

    def openai(self) -> dict[str, Any]:
        """The call as OpenAI's messages have it, but with its arguments as an object, which chat templates read.

        >>> ToolCall("sky", {"city": "Oslo"}, "c1").openai()
        {'id': 'c1', 'type': 'function', 'function': {'name': 'sky', 'arguments': {'city': 'Oslo'}}}
        """
        about = {"type": "function", "function": {"name": self.name, "arguments": dict(self.parameters)}}
        return {"id": self.id, **about} if self.id else about


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue.

    All but `assistant` messages use `text`. An `assistant` message is one step: an optional thought, calls, and an
    optional response in `text` (empty: none). An `observation` is a tool's result; where the record says so, `name` is
    that tool's and `call_id` the id of the call. An `assistant` message that is not `trained` is never a target.
    """

    role: Literal["system", "user", "assistant", "observation"]
    text: str = ""
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""
    trained: bool = field(default=True, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole multi-turn dialogue with the tools on offer in it; `where` and `columns` as in `TurnExample`."""

    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]
    source: str
    id: str
    where: str = ""
    columns: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The two chat messages of a prompt, before the model's chat template."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """The tools on offer and the messages so far; how they are written is the renderer's layout."""

    tools: tuple[ToolSpec, ...]
    history: tuple[Message, ...]


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
        where: file and line or index of the record, for error messages; empty where there is none.
        dialogue: a key that all turns of a dialogue share, kept when names in it are masked; empty: not known yet.
        columns: what else the record holds, for reward functions of the user.
    """

    tools: tuple[ToolSpec, ...]
    history: tuple[Message, ...]
    target: Message
    source: str
    id: str
    prompt: ChatPrompt | None = None
    tags: tuple[str, ...] = field(default=())
    where: str = field(default="", compare=False)
    dialogue: str = field(default="", compare=False)
    columns: Mapping[str, JsonValue] = field(default_factory=dict, compare=False)

    @property
    def place(self) -> str:
        """What an error message calls the example."""
        return self.where or f"{self.source}[{self.id}]"


def split_turns(dialogue: Dialogue) -> list[TurnExample]:
    """Split a dialogue with K assistant steps into K single-step examples (paper, section 4.1).

    The input of example k is every message before the k-th assistant step, the target is that step. Observations, and
    steps that are not `trained`, appear in inputs only. Consecutive assistant messages are one step: calls come before
    the response, so a response directly after calls (no observation between) joins them in one target.

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
    steps = tuple(step for _, step in joined_steps(dialogue.messages))
    examples: list[TurnExample] = []
    for index, message in enumerate(steps):
        if message.role != "assistant" or not message.trained:
            continue
        where = dialogue.where or f"{dialogue.source}[{dialogue.id}]"
        if not message.calls and not message.text:
            raise DataError(where, f"messages[{index}]", "an assistant step with calls or a response", message)
        if index == 0:
            raise DataError(where, "messages[0]", "a user message before the first assistant step", message)
        origin = (dialogue.source, f"{dialogue.id}/{len(examples)}")
        step = TurnExample(dialogue.tools, steps[:index], message, *origin, where=dialogue.where)
        examples.append(replace(step, columns=dialogue.columns))
    return examples


def joined_steps(messages: Iterable[Message]) -> list[tuple[int, Message]]:
    """Join an assistant message with calls and a directly following one with a response only.

    Returns:
        The messages that this leaves, each with the index that its first part has in `messages`.
    """
    joined: list[tuple[int, Message]] = []
    for index, message in enumerate(messages):
        start, previous = joined[-1] if joined else (0, message)
        both = bool(joined) and previous.role == message.role == "assistant"
        if both and previous.calls and not previous.text and not message.calls:
            thought = "\n".join(part for part in (previous.thought, message.thought) if part)
            trained = previous.trained or message.trained
            joined[-1] = start, replace(previous, text=message.text, thought=thought, trained=trained)
        else:
            joined.append((index, message))
    return joined
