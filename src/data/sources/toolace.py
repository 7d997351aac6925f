"""ToolACE: multi-turn dialogues whose system prompt lists the tools as JSON and whose calls are `[Name(x="…")]`.

In that notation of calls, names are free text (spaces, dots, slashes). Values are Python or JSON literals, read here
without evaluating anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator

from src.data.sources.base import CorpusSource, dialogue_examples
from src.data.sources.reading import Record, require
from src.data.sources.tools import check_on_offer, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, ToolCall, ToolSpec, TurnExample

MAX_DEPTH = 64
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_PARAMETER = re.compile(r"[^=,()'\"]+")
_LOOKS_LIKE_CALLS = re.compile(r"\[\s*[^\[\](){}\n]+\(")
_LIST_MARKER = "Here is a list of functions in JSON format that you can invoke"
_SKIP_ADVICE = "Correct the record, or leave bad records out with on_bad_record=skip."


class ToolAceSource(CorpusSource):
    """Records `{"system": …, "conversations": [{"from": "user" | "assistant" | "tool", "value": …}, …]}`.

    An assistant message that opens like a call must be calls; text behind their closing bracket is a response of the
    same step. Every other assistant message is a response. A `tool` message is an observation.
    """

    default_name = "toolace"

    def convert(self, record: Record) -> list[TurnExample]:
        """One example an assistant step.

        Raises:
            DataError: the dialogue does not open with a user, or has no assistant step.
        """
        tools = _tools(require(record.value, "system", str, record.where), record.where)
        turns = require(record.value, "conversations", list, record.where)
        messages = [_message(turn, index, tools, record.where) for index, turn in enumerate(turns)]
        if not messages or messages[0].role != "user":
            raise DataError(record.where, "conversations[0].from", "a dialogue that a user opens", turns[:1])
        examples = dialogue_examples(Dialogue(tools, tuple(messages), self.name, record.id))
        if not examples:
            raise DataError(record.where, "conversations", "at least one assistant message", turns)
        return examples


def _tools(system: str, where: str) -> tuple[ToolSpec, ...]:
    """The first JSON list of named objects in the system prompt (behind the marker, where it has one)."""
    start = max(system.find(_LIST_MARKER), 0)
    decoder = json.JSONDecoder()
    while (start := system.find("[", start)) >= 0:
        try:
            tools = decoder.raw_decode(system, start)[0]
        except (json.JSONDecodeError, RecursionError):
            tools = None
        if isinstance(tools, list) and all(isinstance(tool, dict) and "name" in tool for tool in tools):
            return tool_specs(tools, where, "system")
        start += 1
    raise DataError(where, "system", "a JSON list of tools in the system prompt", system[-120:], _SKIP_ADVICE)


def _message(turn: JsonValue, index: int, tools: tuple[ToolSpec, ...], where: str) -> Message:
    prefix = f"conversations[{index}]."
    if not isinstance(turn, dict):
        raise DataError(where, prefix[:-1], "an object", turn)
    role = require(turn, "from", str, where, prefix)
    text = require(turn, "value", str, where, prefix).strip()
    if role == "user":
        return Message("user", text)
    if role == "tool":
        return Message("observation", text)
    if role != "assistant":
        raise DataError(where, prefix + "from", "'user', 'assistant' or 'tool'", role)
    if not text:
        raise DataError(where, prefix + "value", "calls or a response", turn["value"], _SKIP_ADVICE)
    if not looks_like_calls(text):
        return Message("assistant", text)
    try:
        calls, rest = parse_calls(text, [tool.name for tool in tools])
    except CallSyntaxError as error:
        expected = f"calls as [Name(parameter=value)], here {error}"
        raise DataError(where, prefix + "value", expected, text, _SKIP_ADVICE) from None
    check_on_offer(calls, tools, where, prefix + "value")
    return Message("assistant", rest, calls=calls)


class CallSyntaxError(ValueError):
    """Text that does not follow the notation: says what was expected where, and what stands there."""


def looks_like_calls(text: str) -> bool:
    """Whether a message is meant as calls: an opening bracket, a name and an opening parenthesis.

    >>> looks_like_calls('[Time(zone="CET")]'), looks_like_calls("[1] See the source.")
    (True, False)
    """
    return _LOOKS_LIKE_CALLS.match(text.lstrip()) is not None


def parse_calls(text: str, names: Collection[str] = ()) -> tuple[tuple[ToolCall, ...], str]:
    """Read a list of calls and the text after it.

    Args:
        text: a message that starts with the list.
        names: tools on offer. A call's name is the longest of these that fits, so that a name may hold parentheses;
            any other name ends at the first opening parenthesis.

    Returns:
        The calls, and what follows the closing bracket (stripped; mostly empty).

    >>> parse_calls('[Get Weather(city="Oslo (north)", days=3), ping()]')[0]
    (ToolCall(name='Get Weather', parameters={'city': 'Oslo (north)', 'days': 3}), ToolCall(name='ping', parameters={}))

    Raises:
        CallSyntaxError: see there.
    """
    reader = _Reader(text, sorted(names, key=len, reverse=True))
    return reader.calls(), text[reader.position :].strip()


class _Reader:
    """A recursive-descent parser; `position` is the next unread character."""

    def __init__(self, text: str, names: list[str]) -> None:
        self.text = text
        self.names = names
        self.position = 0

    def calls(self) -> tuple[ToolCall, ...]:
        self.expect("[")
        calls = [self.call()]
        while not self.accept("]"):
            self.expect(",", "',' or ']' after a call")
            calls.append(self.call())
        return tuple(calls)

    def call(self) -> ToolCall:
        name = self.name()
        parameters: dict[str, JsonValue] = {}
        self.expect("(")
        for _ in self.entries(")", "a value"):
            match = _PARAMETER.match(self.text, self.skip_space())
            key = match.group().strip() if match else ""
            if not match or not key or self.text[match.end() : match.end() + 1] != "=":
                raise self.error("a parameter as name=value")
            if key in parameters:
                raise self.error(f"parameter {key!r} once in a call")
            self.position = match.end() + 1
            parameters[key] = self.value(0)
        return ToolCall(name, parameters)

    def entries(self, closing: str, entry: str) -> Iterator[None]:
        """A round for each entry up to the closing mark; a comma may stand behind the last one."""
        if self.accept(closing):
            return
        while True:
            yield
            if self.accept(closing):
                return
            self.expect(",", f"',' or '{closing}' after {entry}")
            if self.accept(closing):
                return

    def name(self) -> str:
        start = self.skip_space()
        for name in self.names:
            end = _SPACE.match(self.text, start + len(name))
            if end and self.text.startswith(name, start) and self.text[end.end() : end.end() + 1] == "(":
                self.position = start + len(name)
                return name
        stop = self.text.find("(", start)
        name = self.text[start:stop].strip()
        if stop < 0 or not name or any(mark in name for mark in '[]="\n'):
            raise self.error("a tool's name and '('")
        self.position = stop
        return name

    def value(self, depth: int) -> JsonValue:
        if depth > MAX_DEPTH:
            raise self.error(f"at most {MAX_DEPTH} levels of brackets")
        start = self.skip_space()
        first = self.text[start : start + 1]
        if first in ("'", '"'):
            return self.string()
        if first in ("[", "("):
            return self.items("]" if first == "[" else ")", depth)
        if first == "{":
            return self.mapping(depth)
        if match := _NUMBER.match(self.text, start):
            return self.number(match)
        match = _WORD.match(self.text, start)
        if match and match.group() in _CONSTANTS:
            self.position = match.end()
            return _CONSTANTS[match.group()]
        raise self.error("a value (quoted string, number, true, false, null, list or object)")

    def number(self, match: re.Match[str]) -> int | float:
        digits = match.group()
        if re.match(r"[-+]?0\d", digits):
            raise self.error("a number without leading zeros, or a quoted string")
        number = int(digits) if re.fullmatch(r"[-+]?\d+", digits) else float(digits)
        if math.isinf(number):
            raise self.error("a finite number")
        self.position = match.end()
        return number

    def items(self, closing: str, depth: int) -> list[JsonValue]:
        self.position += 1
        return [self.value(depth + 1) for _ in self.entries(closing, "an item")]

    def mapping(self, depth: int) -> dict[str, JsonValue]:
        self.position += 1
        mapping: dict[str, JsonValue] = {}
        for _ in self.entries("}", "a value"):
            if self.text[self.skip_space() : self.position + 1] not in ("'", '"'):
                raise self.error("a quoted key")
            key = self.string()
            self.expect(":")
            mapping[key] = self.value(depth + 1)
        return mapping

    def string(self) -> str:
        start = self.position
        quote = self.text[start]
        parts: list[str] = []
        at = start + 1
        while at < len(self.text):
            char = self.text[at]
            if char == quote:
                self.position = at + 1
                return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if char != "\\":
                parts.append(char)
                at += 1
                continue
            part, length = self.escape(at + 1)
            parts.append(part)
            at += 1 + length
        self.position = start
        raise self.error("a closing quote")

    def escape(self, at: int) -> tuple[str, int]:
        """The text and the length of the escape whose backslash stands before `at`; unknown ones stay as they are."""
        char = self.text[at : at + 1]
        digits = {"u": 4, "x": 2}.get(char, 0)
        code = self.text[at + 1 : at + 1 + digits]
        if digits and re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", code):
            return chr(int(code, 16)), 1 + digits
        if char in ("'", '"', "\\", "/"):
            return char, 1
        return _ESCAPES.get(char, "\\" + char), 1

    def skip_space(self) -> int:
        match = _SPACE.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return self.position

    def accept(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.skip_space())
        self.position += len(mark) if found else 0
        return found

    def expect(self, mark: str, expected: str = "") -> None:
        if not self.accept(mark):
            raise self.error(expected or f"'{mark}'")

    def error(self, expected: str) -> CallSyntaxError:
        rest = self.text[self.position : self.position + 40]
        found = f"at character {self.position}, found {rest!r}" if rest else "at the end of the text"
        return CallSyntaxError(f"{expected} {found}")
