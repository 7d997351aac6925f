"""The output protocol: text to `ParsedResponse`. The only place that knows its tags.

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
import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

from src.protocol.dialogue import ToolCall
from src.protocol.types import ParsedResponse, Region, Span

_TAGS = {name.encode(): (name, f"</{name}>".encode()) for name in ("think", "tool_call", "response")}
_OPENING_TAG = re.compile(rb"<(think|tool_call|response)>")
# A string ends at its closing quote or, unterminated, at the end of its line: JSON strings hold no raw line break.
_LEXEME = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+("?)|[{}\n]')
_COLON = re.compile(rb"\s*+:\s*+")
_CALL_ON_NEXT_LINE = re.compile(rb'[ \t\r]*+\{[ \t]*+"name"')

# A valid call whose name comes first: its name and its parameters, which end at the last but one brace of the line.
_CALL = re.compile(
    rb'\s*+\{\s*+"name"\s*+:\s*+"((?:[^"\\\n]++|\\[^\n])*+)"\s*+,\s*+"parameters"\s*+:\s*+(\{[^\n]*\})[^\S\n]*\}'
)

_NEWLINE, _QUOTE, _OPENING_BRACE = ord("\n"), ord('"'), ord("{")
_FORMAT, _TOOL_NAME, _TOOL_PARAMETERS, _REASONING, _RESPONSE, _OTHER = Region  # an enum's attribute is a slow look-up


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
    marks: list[_Mark] = []
    fields = _split_fields(data)
    first = {field.name: field for field in reversed(fields)}
    blocks = [field for field in fields if field.name == "tool_call"]
    read = [_parse_calls(data[block.start : block.stop]) if block.closed else None for block in blocks]
    valid = [calls for calls in read if calls is not None]
    calls_of = iter(read)
    stray = False
    position = 0
    for field in fields:
        stray |= _fill_outside(marks, data, position, field.opening)
        marks.append((field.start, _FORMAT))
        if field.name != "tool_call":
            marks.append((field.stop, _REASONING if field.name == "think" else _RESPONSE))
        elif (calls := next(calls_of)) is None or not _fill_calls(marks, data, field, len(calls)):
            _fill_block(marks, data, field)
        marks.append((field.end, _FORMAT))
        position = field.end
    stray |= _fill_outside(marks, data, position, len(data))
    thought, response = first.get("think"), first.get("response")
    return ParsedResponse(
        fields=tuple([field.name for field in fields]),
        closed=tuple([field.closed for field in fields]),
        thought=None if thought is None else _decode(data[thought.start : thought.stop]),
        calls=tuple(chain.from_iterable(valid)) if blocks and len(valid) == len(blocks) else None,
        response=None if response is None else _decode(data[response.start : response.stop]),
        spans=_spans(marks, len(prefix)),
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


_Mark = tuple[int, Region]
"""Where a piece of prefix + text ends, and its region; it begins where the mark before it ends."""


def _spans(marks: Iterable[_Mark], offset: int) -> tuple[Span, ...]:
    """The pieces after the first `offset` bytes, from 0, without the empty ones; neighbours of one region are joined.

    >>> [tuple(map(int, span)) for span in _spans([(2, _FORMAT), (5, _FORMAT), (5, _OTHER), (9, _REASONING)], 3)]
    [(0, 2, 0), (2, 6, 3)]
    """
    spans: list[Span] = []
    start = filled = 0
    last = None
    for stop, region in marks:
        stop -= offset
        if stop > filled:
            if region is not last:
                if last is not None:
                    spans.append(Span(start, filled, last))
                start, last = filled, region
            filled = stop
    if last is not None:
        spans.append(Span(start, filled, last))
    return tuple(spans)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


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


def _fill_outside(marks: list[_Mark], data: bytes, start: int, stop: int) -> bool:
    """Fill what belongs to no field or call: white space at its borders is FORMAT, the rest OTHER. True if any is."""
    text = data[start:stop]
    core = text.lstrip()
    if core:
        marks.append((stop - len(core), _FORMAT))
        marks.append((stop - len(core) + len(core.rstrip()), _OTHER))
    marks.append((stop, _FORMAT))
    return bool(core)


def _fill_calls(marks: list[_Mark], data: bytes, field: _Field, count: int) -> bool:
    """Fill a block of `count` valid calls as `_fill_block` would; False, and nothing filled, if one is not in order."""
    found: list[_Mark] = []
    position = field.start
    for _ in range(count):
        match = _CALL.match(data, position, field.stop)
        if match is None:
            return False
        position = match.end()
        (name, name_stop), (parameters, parameters_stop) = match.span(1), match.span(2)
        found += [
            (name, _FORMAT), (name_stop, _TOOL_NAME), (parameters, _FORMAT), (parameters_stop, _TOOL_PARAMETERS)
        ]  # fmt: skip
    marks += found
    marks.append((field.stop, _FORMAT))
    return True


def _fill_block(marks: list[_Mark], data: bytes, field: _Field) -> None:
    """Fill the inside of a tool_call block, well-formed or not.

    A call begins at an opening brace outside of any call and ends at the matching brace. One that is never closed ends
    before a line that begins another call, or with the block.
    """
    stop = field.start + len(data[field.start : field.stop].rstrip()) if field.closed else field.stop
    outside = field.start  # where the text since the last call began
    depth = 0
    in_parameters = False
    key, value_at = b"", -1  # the last key at depth 1 and where its value begins
    for match in _LEXEME.finditer(data, field.start, stop):
        at, after = match.span()
        kind = data[at]
        if kind == _OPENING_BRACE:
            if depth == 0:
                _fill_outside(marks, data, outside, at)
            elif depth == 1 and key == b"parameters" and at == value_at:
                marks.append((at, _FORMAT))
                in_parameters = True
            depth += 1
        elif depth == 0:
            continue
        elif kind == _NEWLINE:
            if _CALL_ON_NEXT_LINE.match(data, after, stop):
                marks.append((at, _TOOL_PARAMETERS if in_parameters else _FORMAT))
                depth, in_parameters, key, outside = 0, False, b"", at
        elif kind == _QUOTE:
            if depth > 1:
                continue
            content_stop = match.start(1)
            if key == b"name" and at == value_at:
                marks.append((at + 1, _FORMAT))
                marks.append((content_stop, _TOOL_NAME))
                key = b""
            elif colon := _COLON.match(data, after, stop):
                key, value_at = data[at + 1 : content_stop], colon.end()
        else:  # a closing brace
            depth -= 1
            if depth == 1 and in_parameters:
                marks.append((after, _TOOL_PARAMETERS))
                in_parameters = False
            elif depth == 0:
                marks.append((after, _FORMAT))
                key, outside = b"", after
    if depth > 0:
        marks.append((stop, _TOOL_PARAMETERS if in_parameters else _FORMAT))
        outside = stop
    _fill_outside(marks, data, outside, field.stop)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is more than a float can hold")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant, parse_float=_finite)


def _parse_calls(block: bytes) -> tuple[ToolCall, ...] | None:
    """The calls of a block, one a line; None if any line is not a call."""
    calls = []
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        text = _decode(line).strip(" \t\r")  # JSON's white space
        try:
            value, end = _JSON.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        if end != len(text) or not isinstance(value, dict) or len(value) != 2:
            return None
        name, parameters = value.get("name"), value.get("parameters")
        if not isinstance(name, str) or not isinstance(parameters, dict):
            return None
        calls.append(ToolCall(name, parameters))
    return tuple(calls)
