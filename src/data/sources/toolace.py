"""ToolACE: multi-turn dialogues whose system prompt lists the tools as JSON and whose calls are `[Name(x="…")]`.

In that notation of calls, names are free text (spaces, dots, slashes). Values are Python or JSON literals, read here
without evaluating anything. Calls in some other shapes are read too, see `ToolAceSource`.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from src.data.sources.base import REFUSAL, CorpusSource, dialogue_examples, json_calls
from src.data.sources.reading import DECODER, Record, check_json, require, unfenced
from src.data.sources.tools import check_on_offer, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, ToolCall, ToolSpec, TurnExample

log = logging.getLogger(__name__)

MAX_DEPTH = 64
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_PARAMETER = re.compile(r"[^=,()'\"]+")
_ARGUMENTS = re.compile(r"\(\s*(?:\)|[^=,()'\"]+=)")
_LISTED = re.compile(r"\[[\[\s]*")
_LISTED_CALL = re.compile(rf"[^\[\]{{}}\n]+{_ARGUMENTS.pattern}")
_PARENTHESIS = re.compile(r"\s*\(")
_OBJECT = re.compile(r"[\[\s]*\{\s*[\"']")
JSON_CALL = re.compile(
    r"""\{\s*["'](?:tool_calls["']\s*:\s*\[|name["']\s*:\s*["'][^"'\n]*["']\s*,\s*["'](?:arguments|parameters)["']\s*:)"""
)
_OPENING = re.compile(r"(```)(?:\w*\s+)?|(`(?=[^`]+`\Z)|<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>)\s*")
_CLOSING = {"```": "```", "`": "`", "<tool_call>": "</tool_call>"}
_BETWEEN = re.compile(r"[\s,]*")
_EMPTY = re.compile(r"`?\[\s*\]`?")
CALL = re.compile(rf"[\w./-]+{_ARGUMENTS.pattern}")
_OF_OBJECTS = re.compile(r"\[\s*\{\s*\"")
_SAYS_WHAT = ("description", "parameters", "input_schema")
_LIST_MARKER = "Here is a list of functions in JSON format that you can invoke"


class ToolAceSource(CorpusSource):
    """Records `{"system": …, "conversations": [{"from": "user" | "assistant" | "tool", "value": …}, …]}`.

    An assistant message that opens like a call must be calls; text behind their closing bracket is a response of the
    same step. Every other assistant message is a response. A `tool` message is an observation.

    Calls are also read in several lists, without brackets, as JSON (`[{"name": …, "arguments": {…}}]`), in a Markdown
    fence and behind the tags of Hermes, Mistral and Llama; `[]` is a refusal. How many messages came so is logged.
    """

    default_name = "toolace"

    def __init__(self, **corpus: Any) -> None:
        super().__init__(**corpus)
        self._shapes: Counter[str] = Counter()

    def convert(self, record: Record) -> list[TurnExample]:
        """One example an assistant step.

        Raises:
            DataError: the dialogue does not open with a user, or has no assistant step.
        """
        tools = _tools(require(record.value, "system", str, record.where), record.where)
        turns = require(record.value, "conversations", list, record.where)
        messages = [_message(turn, index, tools, record.where, self._shapes) for index, turn in enumerate(turns)]
        if not messages or messages[0].role != "user":
            raise DataError(record.where, "conversations[0].from", "a dialogue that a user opens", turns[:1])
        if not messages[0].text:
            raise DataError(record.where, "conversations[0].value", "a user's request", turns[0]["value"])
        examples = dialogue_examples(Dialogue(tools, tuple(messages), self.name, record.id, record.where))
        if not examples:
            raise DataError(record.where, "conversations", "at least one assistant message", turns)
        return examples

    def _read(self, path: str | None) -> list[TurnExample]:
        self._shapes.clear()
        examples = super()._read(path)
        if self._shapes:
            counts = ", ".join(f"{count} {shape}" for shape, count in sorted(self._shapes.items()))
            log.info("%s: messages with calls in other shapes than one list: %s.", self.name, counts)
        return examples


def _tools(system: str, where: str) -> tuple[ToolSpec, ...]:
    """The first JSON list of tools in the system prompt (behind the marker, where it has one).

    Lists of anything else are passed over whole. There are no tools where an empty list is the only one.
    """
    start = max(system.find(_LIST_MARKER), 0)
    empty = other = False
    while (start := system.find("[", start)) >= 0:
        try:
            tools, end = DECODER.raw_decode(system, start)
        except (ValueError, RecursionError) as error:
            other = other or _OF_OBJECTS.match(system, start) is not None
            start = max(start + 1, getattr(error, "pos", 0))  # what it holds up to there is no list of its own
            continue
        if tools and all(map(_is_tool, tools)):
            check_json(tools, where, "system")
            return tool_specs(tools, where, "system")
        empty, other, start = empty or not tools, other or bool(tools), end
    if empty and not other:
        return ()
    advice = "A tool has a name, and a description or parameters."
    raise DataError(where, "system", "a JSON list of tools in the system prompt", system[-120:], advice)


def _is_tool(value: JsonValue) -> bool:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        return "name" in value["function"] and "arguments" not in value["function"]
    return isinstance(value, dict) and "name" in value and not value.keys().isdisjoint(_SAYS_WHAT)


def _message(turn: JsonValue, index: int, tools: tuple[ToolSpec, ...], where: str, shapes: Counter[str]) -> Message:
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
        raise DataError(where, prefix + "value", "calls or a response", turn["value"])
    if _EMPTY.fullmatch(unfenced(text)):
        shapes["as an empty list"] += 1
        return Message("assistant", REFUSAL)
    calls, response, found = parse_calls(text, [tool.name for tool in tools], where, prefix + "value")
    shapes.update(found)
    check_on_offer(calls, tools, where, prefix + "value")
    return Message("assistant", response, calls=calls)


def parse_calls(
    text: str, names: Collection[str], where: str, field: str
) -> tuple[tuple[ToolCall, ...], str, set[str]]:
    """Read the calls that a message opens with.

    What looks like calls must be calls: a list with the name of a tool on offer and `(`, or any name with `(parameter=`
    or `()`; without a list, a tool on offer with either; JSON objects with a name and arguments; a tag like Hermes'.

    Args:
        text: the message, stripped.
        names: tools on offer. A call's name is the longest of these that fits, so that a name may hold parentheses;
            any other name ends at the first opening parenthesis.
        where: of the record, for the error.
        field: of the message.

    Returns:
        The calls, none if the message is a response; what follows them; and in which shapes they are, other than one
        list.

    >>> calls, response, shapes = parse_calls("[Get Weather(city='Oslo (north)'), ping()] Wait.", [], "", "")
    >>> calls, response
    ((ToolCall(name='Get Weather', parameters={'city': 'Oslo (north)'}), ToolCall(name='ping', parameters={})), 'Wait.')

    Raises:
        DataError: what looks like calls cannot be read.
    """
    reader = _Reader(text, sorted(names, key=len, reverse=True))
    try:
        calls, shapes = reader.message(where, field)
    except _CallSyntaxError as error:
        raise DataError(where, field, f"calls as [Name(parameter=value)], here {error}", text) from None
    return calls, text[reader.position :].strip(), shapes


class _CallSyntaxError(ValueError):
    """Says what was expected where, and what stands there."""


class _Reader:
    """A recursive-descent parser; `position` is the next unread character."""

    def __init__(self, text: str, names: list[str]) -> None:
        self.text = text
        self.names = names
        self.position = 0

    def message(self, where: str, field: str) -> tuple[tuple[ToolCall, ...], set[str]]:
        """Calls and shapes as in `parse_calls`."""
        calls: list[ToolCall] = []
        shapes: set[str] = set()
        closing = ""
        while True:
            behind = self.position
            self.skip(_BETWEEN)
            mark = ""
            if not closing and (opening := _OPENING.match(self.text, self.position)):
                mark, self.position = opening[1] or opening[2], opening.end()
            if self.opens_like_a_list():
                shapes |= {"in several lists"} if calls else set()
                calls += self.calls()
            elif self.opens_like_a_call():
                shapes.add("without brackets")
                calls.append(self.call())
            elif (objects := self.objects()) is not None:
                shapes.add("as JSON")
                calls += json_calls(objects, where, field)
            elif mark.strip("`"):
                raise self.error(f"calls behind '{mark}'")
            else:
                self.position = behind
                break
            if mark:
                shapes.add("in tags" if mark.strip("`") else "in a fence")
                closing = _CLOSING.get(mark, "")
            closing = "" if closing and self.accept(closing) else closing
        if closing:
            raise self.error(f"'{closing}' behind the calls")
        if "without brackets" in shapes and self.text[behind:].strip():
            raise self.error("nothing behind calls without brackets")
        return tuple(calls), shapes

    def opens_like_a_list(self) -> bool:
        """Whether here stands a list with the name of a tool on offer and `(`, or any name with arguments or `()`."""
        opening = _LISTED.match(self.text, self.position)
        return opening is not None and (
            _LISTED_CALL.match(self.text, opening.end()) is not None
            or self.known(opening.end(), _PARENTHESIS) is not None
        )

    def opens_like_a_call(self) -> bool:
        """Whether here stands the name of a tool on offer, with arguments or `()`."""
        return self.known(self.position, _ARGUMENTS) is not None

    def known(self, at: int, behind: re.Pattern[str]) -> str | None:
        """The tool on offer whose name stands there with `behind` behind it, the longest that fits."""
        fitting = (name for name in self.names if self.text.startswith(name, at))
        return next((name for name in fitting if behind.match(self.text, at + len(name))), None)

    def objects(self) -> JsonValue | None:
        """The JSON that stands here, if it is meant as calls."""
        start = self.position
        if not _OBJECT.match(self.text, start):
            return None
        try:
            value = self.value(0)
        except _CallSyntaxError:
            if JSON_CALL.match(self.text, self.text.index("{", start)):
                raise
            value = None
        if isinstance(value, dict) and value.keys() == {"tool_calls"} and value["tool_calls"]:
            value = value["tool_calls"]
        if self.is_call(value):
            return value
        self.position = start
        return None

    def is_call(self, value: JsonValue) -> bool:
        """Whether an object has a name and arguments, or is the name of a tool on offer; of a list, whether any is."""
        if isinstance(value, list):
            return any(map(self.is_call, value))
        if not isinstance(value, dict):
            return False
        call = value["function"] if isinstance(value.get("function"), dict) else value
        return isinstance(value.get("tool_calls"), list) or (
            "name" in call
            and ("arguments" in call or "parameters" in call or call in ({"name": n} for n in self.names))
        )

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
        if known := self.known(start, _PARENTHESIS):
            self.position = start + len(known)
            return known
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
        try:
            number = int(digits) if re.fullmatch(r"[-+]?\d+", digits) else float(digits)
            finite = math.isfinite(number)
        except (ValueError, OverflowError):  # an integer of hundreds of digits
            finite = False
        if not finite:
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
            if key in mapping:
                raise self.error(f"key {key!r} once in an object")
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
                try:
                    text = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")
                except UnicodeDecodeError:
                    raise self.error("text without a lone surrogate") from None
                self.position = at + 1
                return text
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
        self.skip(_SPACE)
        return self.position

    def skip(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return match is not None

    def accept(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.skip_space())
        self.position += len(mark) if found else 0
        return found

    def expect(self, mark: str, expected: str = "") -> None:
        if not self.accept(mark):
            raise self.error(expected or f"'{mark}'")

    def error(self, expected: str) -> _CallSyntaxError:
        rest = self.text[self.position : self.position + 40]
        found = f"at character {self.position}, found {rest!r}" if rest else "at the end of the text"
        return _CallSyntaxError(f"{expected} {found}")
