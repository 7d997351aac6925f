r"""`qwen3_xml`, of Qwen3-Coder, Qwen3.5 and later: a function and its parameters as tags in each `<tool_call>`.

    <tool_call>
    <function=sky>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>

A value is text; its type is what the tool's schema says, tried in the order of vLLM's reader (null, integer, number,
boolean, object, array, string). Without a schema it stays text. One line break at each end of a value is layout.

The reader has the states of vLLM's: what a state does not expect is part of its text. A function without `<tool_call>`
around it is read, a parameter that is not closed ends at the next one, and the end of the answer ends all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec
from src.protocol.formats.marks import FORMAT, TOOL_NAME, TOOL_PARAMETERS, decode, fill_text
from src.protocol.formats.native import Answer, behind_thought, joined
from src.protocol.types import ParsedResponse

_BLOCK, _BLOCK_END, _FUNCTION, _FUNCTION_END = b"<tool_call>", b"</tool_call>", b"<function=", b"</function>"
_OTHER_TAGS = (b"<think>", b"</think>", b"<parameter=", b"</parameter>")  # whose bracket ends no function's name
_TERMINAL = re.compile(b"|".join((_BLOCK, _BLOCK_END, _FUNCTION, _FUNCTION_END, *_OTHER_TAGS, b">")))
_PARAMETER = re.compile(r"<\s*+parameter\s*+=\s*+")
_PARAMETER_END = re.compile(r"<\s*+/\s*+parameter\s*+>|(?=<\s*+parameter\s*+=)")
_ALIASES = {
    **dict.fromkeys(("str", "text", "varchar", "char", "enum"), "string"),
    **dict.fromkeys(("int", "int32", "int64", "uint", "uint32", "uint64", "long", "short", "unsigned"), "integer"),
    **dict.fromkeys(("float", "float32", "float64", "double"), "number"),
    **dict.fromkeys(("arr", "list", "sequence"), "array"),
    "bool": "boolean",
    "dict": "object",
}
"""What vLLM's reader takes for a type of JSON schema."""
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


class Qwen3Xml:
    """See the module."""

    name = "qwen3_xml"
    tool_call_parser: str | None = "qwen3_xml"
    reasoning_parser: str | None = "qwen3"

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        """See `OutputFormat.parse`."""
        answer, at = behind_thought(data, prefix)
        _Reader(answer, {tool.name: tool for tool in tools}).read(at)
        return answer.read()

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """See `OutputFormat.step_text`."""
        thought = f"<think>\n{step.thought}\n</think>" if step.thought else ""
        return joined([thought, "\n".join(part for part in (step.text, *map(_call_text, step.calls)) if part)])


def _call_text(call: ToolCall) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in call.parameters.items()}
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


class _Reader:
    """The states of an answer behind its thought: text, in a block, a function's name, its parameters, behind it."""

    def __init__(self, answer: Answer, tools: Mapping[str, ToolSpec]) -> None:
        self._answer, self._data, self._marks, self._tools = answer, answer.data, answer.marks, tools
        self._call: ToolCall | None = None  # of the block that is being read
        self._name = ""
        self._wrapped = self._ended = False
        self._more = False

    def read(self, at: int) -> None:
        """Read from `at` to the end."""
        state = "text"
        for match in _TERMINAL.finditer(self._data, at):
            word, (here, after) = match[0], match.span()
            following = self._step(state, word, at, here)
            if following is not None:
                self._marks.append((after, FORMAT))
                state, at = following, after
        stop = len(self._data)
        if state == "text":
            self._answer.say(at, stop)
            return
        if state == "name":
            self._take_name(at, stop)
        elif state == "parameters":
            self._take_parameters(at, stop)
        else:
            self._more |= fill_text(self._marks, self._data, at, stop)
        self._finish(closed=False)

    def _step(self, state: str, word: bytes, at: int, here: int) -> str | None:
        """Take `[at, here)` if the word ends it; the next state, or None."""
        begins = {_BLOCK: "block", _FUNCTION: "name"}.get(word)
        if state == "text" and begins is not None:
            self._answer.say(at, here)
            self._begin(wrapped=word == _BLOCK)
            return begins
        if state == "block" and word in (_FUNCTION, _BLOCK_END):
            self._more |= fill_text(self._marks, self._data, at, here)
            if word == _FUNCTION:
                return "name"
            self._finish(closed=True)
            return "text"
        if state == "name" and word in (b">", _FUNCTION_END):
            self._take_name(at, here)
            self._ended = False
            return "parameters" if word == b">" else "behind"
        if state == "parameters" and word == _FUNCTION_END:
            self._take_parameters(at, here)
            self._ended = True
            return "behind"
        if state == "behind" and word in (_BLOCK_END, _BLOCK, _FUNCTION):
            self._more |= fill_text(self._marks, self._data, at, here)
            self._finish(closed=word == _BLOCK_END and self._wrapped and self._ended)
            if begins is None:
                return "text"
            self._begin(wrapped=word == _BLOCK)
            return begins
        return None

    def _begin(self, wrapped: bool) -> None:
        self._call, self._name, self._wrapped, self._ended, self._more = None, "", wrapped, False, False

    def _finish(self, closed: bool) -> None:
        calls = [self._call] if self._call is not None and self._call.name else []
        self._answer.call(calls, closed=closed, more=self._more or not calls)

    def _take_name(self, start: int, stop: int) -> None:
        fill_text(self._marks, self._data, start, stop, TOOL_NAME)
        self._call = ToolCall(decode(self._data[start:stop]).strip(), {})

    def _take_parameters(self, start: int, stop: int) -> None:
        fill_text(self._marks, self._data, start, stop, TOOL_PARAMETERS)
        assert self._call is not None
        name = self._call.name
        schemas = self._tools[name].parameters if name in self._tools else {}
        found, left = _parameters(decode(self._data[start:stop]))
        values = {key: typed(value, schemas[key]) if key in schemas else value for key, value in found}
        self._call = ToolCall(name, values)
        self._more |= left or len(values) < len(found)


def _parameters(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Names and values, without the line breaks around these; and whether there is anything else."""
    found: list[tuple[str, str]] = []
    left = False
    at = 0
    while opening := _PARAMETER.search(text, at):
        start = text.find(">", opening.end())
        end = None if start < 0 else _PARAMETER_END.search(text, start + 1)
        if end is None:
            break
        left |= bool(text[at : opening.start()].strip()) or end.start() == end.end()
        value = text[start + 1 : end.start()]
        value = value.removeprefix("\n")
        found.append((text[opening.end() : start], value.removesuffix("\n")))
        at = end.end()
    return found, left or bool(text[at:].strip())


def typed(value: str, schema: Mapping[str, JsonValue]) -> JsonValue:
    """The value that a text is by its schema, as vLLM's reader finds it; the text where nothing fits.

    >>> typed("3", {"type": "integer"}), typed("3", {"type": "string"}), typed("True", {"type": ["boolean", "null"]})
    (3, '3', True)
    >>> typed("[1, 2]", {"anyOf": [{"type": "array"}, {"type": "null"}]}), typed("[1, 2", {"type": "array"})
    ([1, 2], '[1, 2')
    """
    kinds = {_ALIASES.get(kind, kind) for kind in (one.strip().lower() for one in _kinds(schema))}
    kinds = kinds or {"string"}
    if "null" in kinds and value.lower() == "null":
        return None
    for kind, read in _READERS:
        if kind in kinds:
            try:
                return read(value)
            except (ValueError, RecursionError):
                continue
    if "string" in kinds:
        return value
    try:
        return _json(value)
    except (ValueError, RecursionError):
        return value


def _kinds(schema: JsonValue) -> Iterator[str]:
    """Every type that a schema names; of a choice without types, text."""
    if not isinstance(schema, Mapping):
        yield "string"
        return
    found = False
    named = schema.get("type")
    for kind in [named] if isinstance(named, str) else named if isinstance(named, list) else []:
        if isinstance(kind, str):
            found = True
            yield kind
    enum = schema.get("enum")
    for value in enum if isinstance(enum, list) else []:
        found = True
        yield "null" if value is None else _NAMES.get(type(value), "string")
    for key in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(key)
        for choice in choices if isinstance(choices, list) else []:
            found = True
            yield from _kinds(choice)
    if not found:
        yield "string"


def _number(value: str) -> JsonValue:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return int(number) if number == int(number) else number


def _boolean(value: str) -> JsonValue:
    word = value.lower().strip()
    if word not in ("true", "1", "false", "0"):
        raise ValueError(value)
    return word in ("true", "1")


def _json(value: str) -> JsonValue:
    """JSON with finite numbers only; of a key that comes twice the last value counts, as in vLLM."""
    found = json.loads(value)
    json.dumps(found, allow_nan=False)
    return found


_READERS = (("integer", int), ("number", _number), ("boolean", _boolean), ("object", _json), ("array", _json))
