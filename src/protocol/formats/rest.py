"""`rest`, the paper's output protocol: text to `ParsedResponse` and back. The only place that knows its tags.

A response is a sequence of fields, `<think>`, `<tool_call>` and `<response>`. A field ends at the first closing tag of
its own name and everything until there belongs to it, so a thought may mention any other tag. What is never closed
runs to the end of the text.

A tool_call block holds one call a line; blank lines are white space. The calls of all blocks count. A call is a JSON
object with exactly the keys `name` (a string) and `parameters` (an object). These are not calls, because no two readers
agree on them: NaN and Infinity (not JSON), a number that a float cannot hold (1e999), an object with a key twice, JSON
nested deeper than the interpreter's recursion limit.

Regions do not depend on whether the calls are valid: they are found lexically, in one pass, for the calls of every
block. Where the calls are known to be valid a pattern of a whole call finds the same in less time. Nothing here raises
on any text, and the time taken is linear in its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import chain
from typing import NamedTuple

from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.formats.marks import (
    FORMAT,
    JSON,
    REASONING,
    RESPONSE,
    TOOL_NAME,
    TOOL_PARAMETERS,
    Mark,
    decode,
    fill_json_calls,
    fill_text,
    spans_of,
)
from src.protocol.types import ParsedResponse

_TAGS = {name.encode(): (name, f"</{name}>".encode()) for name in ("think", "tool_call", "response")}
_OPENING_TAG = re.compile(rb"<(think|tool_call|response)>")
_TAG = re.compile("<(/?(?:think|tool_call|response)>)")

# A valid call whose name comes first: its name and its parameters, which end at the last but one brace of the line.
_CALL = re.compile(
    rb'\s*+\{\s*+"name"\s*+:\s*+"((?:[^"\\\n]++|\\[^\n])*+)"\s*+,\s*+"parameters"\s*+:\s*+(\{[^\n]*\})[^\S\n]*\}'
)


class Rest:
    """The paper's format, in which prompts hold instructions to write it; see the module."""

    name = "rest"
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        """See `OutputFormat.parse`."""
        return parse_bytes(data, prefix=prefix)

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """See `OutputFormat.step_text`."""
        return step_text(step, escaped=escaped)


def call_line(call: ToolCall, escaped: Collection[str] = ()) -> str:
    r"""One call as its line of a tool_call block, in which neither the protocol's tags nor `escaped` appear.

    Where they are part of a value or a name their first character is written as JSON's escape.

    >>> call_line(ToolCall("say", {"text": "</tool_call><eos>"}), escaped=["<eos>"])
    '{"name": "say", "parameters": {"text": "\\u003c/tool_call>\\u003ceos>"}}'
    """
    line = json.dumps({"name": call.name, "parameters": call.parameters}, ensure_ascii=False)
    if "<" in line:
        line = _TAG.sub(r"\\u003c\1", line)
    for text in escaped:
        if text in line:
            line = line.replace(text, f"\\u{ord(text[0]):04x}{text[1:]}")
    return line


def step_text(step: Message, thought: str | None = None, escaped: Collection[str] = ()) -> str:
    r"""An assistant step in the output protocol: think, then tool_call and/or response, a line break between fields.

    >>> step_text(Message("assistant", "Hi!", "Greet."))
    '<think> Greet. </think>\n<response> Hi! </response>'
    """
    parts = []
    thought = step.thought if thought is None else thought
    if thought:
        parts.append(f"<think> {thought} </think>")
    if step.calls:
        parts.append("\n".join(["<tool_call>", *(call_line(call, escaped) for call in step.calls), "</tool_call>"]))
    if step.text:
        parts.append(f"<response> {step.text} </response>")
    return "\n".join(parts)


def parse(text: str, *, prefix: str = "") -> ParsedResponse:
    r"""Read a response by the output protocol.

    Args:
        text: the sampled text, without the end-of-turn token.
        prefix: the part of the response that the chat template already wrote in the prompt (`<think>\n` for thinking
            templates). It counts for the fields and their text; spans and `size` are about `text` alone.

    Positions are bytes of the text in UTF-8, in which a lone surrogate takes three bytes (`surrogatepass`).

    >>> parsed = parse('<think> Rain? </think>\n<tool_call>\n{"name": "sky", "parameters": {}}\n</tool_call>')
    >>> parsed.fields, parsed.closed, parsed.calls
    (('think', 'tool_call'), (True, True), (ToolCall(name='sky', parameters={}),))
    >>> [(span.start, span.stop, span.region.label) for span in parsed.spans][:4]
    [(0, 7, 'format'), (7, 14, 'reasoning'), (14, 45, 'format'), (45, 48, 'tool_name')]
    """
    return parse_bytes(text.encode("utf-8", "surrogatepass"), prefix=prefix.encode("utf-8", "surrogatepass"))


def parse_bytes(text: bytes, *, prefix: bytes = b"") -> ParsedResponse:
    """`parse` for bytes as they were sampled, which need not be UTF-8. What is not reads as U+FFFD."""
    data = prefix + text
    marks: list[Mark] = []
    fields = _split_fields(data)
    first = {field.name: field for field in reversed(fields)}
    blocks = [field for field in fields if field.name == "tool_call"]
    read = [_parse_calls(data[block.start : block.stop]) if block.closed else None for block in blocks]
    valid = [calls for calls in read if calls is not None]
    calls_of = iter(read)
    stray = False
    position = 0
    for field in fields:
        stray |= fill_text(marks, data, position, field.opening)
        marks.append((field.start, FORMAT))
        if field.name != "tool_call":
            marks.append((field.stop, REASONING if field.name == "think" else RESPONSE))
        elif (calls := next(calls_of)) is None or not _fill_calls(marks, data, field, len(calls)):
            fill_json_calls(
                marks, data, field.start, field.stop, closed=field.closed, by_line=True, parameters=(b"parameters",)
            )
        marks.append((field.end, FORMAT))
        position = field.end
    stray |= fill_text(marks, data, position, len(data))
    thought, response = first.get("think"), first.get("response")
    return ParsedResponse(
        fields=tuple([field.name for field in fields]),
        closed=tuple([field.closed for field in fields]),
        thought=None if thought is None else decode(data[thought.start : thought.stop]),
        calls=tuple(chain.from_iterable(valid)) if blocks and len(valid) == len(blocks) else None,
        response=None if response is None else decode(data[response.start : response.stop]),
        spans=spans_of(marks, len(prefix)),
        size=len(text),
        stray=stray,
    )


class _Field(NamedTuple):
    """A field: tags are `[opening, start)` and `[stop, end)`, the content `[start, stop)`; unclosed: stop == end."""

    name: str
    opening: int
    start: int
    stop: int
    end: int
    closed: bool


def _split_fields(data: bytes) -> list[_Field]:
    fields = []
    position = 0
    while match := _OPENING_TAG.search(data, position):
        name, closing_tag = _TAGS[match[1]]
        opening, start = match.span()
        stop = data.find(closing_tag, start)
        closed = stop >= 0
        if not closed:
            stop = len(data)
        position = stop + len(closing_tag) if closed else stop
        fields.append(_Field(name, opening, start, stop, position, closed))
    return fields


def _fill_calls(marks: list[Mark], data: bytes, field: _Field, count: int) -> bool:
    """Fill a block of `count` valid calls as `fill_json_calls` would; nothing, and False, if one is not in order."""
    found: list[Mark] = []
    position = field.start
    for _ in range(count):
        match = _CALL.match(data, position, field.stop)
        if match is None:
            return False
        position = match.end()
        (name, name_stop), (parameters, parameters_stop) = match.span(1), match.span(2)
        found += [
            (name, FORMAT), (name_stop, TOOL_NAME), (parameters, FORMAT), (parameters_stop, TOOL_PARAMETERS)
        ]  # fmt: skip
    marks += found
    marks.append((field.stop, FORMAT))
    return True


def _parse_calls(block: bytes) -> tuple[ToolCall, ...] | None:
    """The calls of a block, one a line; None if any line is not a call."""
    calls = []
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        text = decode(line).strip(" \t\r")  # JSON's white space
        try:
            value, end = JSON.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        if end != len(text) or not isinstance(value, dict) or len(value) != 2:
            return None
        name, parameters = value.get("name"), value.get("parameters")
        if not isinstance(name, str) or not isinstance(parameters, dict):
            return None
        calls.append(ToolCall(name, parameters))
    return tuple(calls)
