"""What the readers of all formats share: regions as marks on the text, and JSON read strictly.

A mark is where a piece of the text ends and which region it is; the piece begins where the mark before it ends.
Positions are bytes. All of it takes time in proportion to the text and raises on none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

from src.protocol.types import Region, Span

FORMAT, TOOL_NAME, TOOL_PARAMETERS, REASONING, RESPONSE, OTHER = Region  # an enum's attribute is a slow look-up

Mark = tuple[int, Region]

# A string ends at its closing quote or, unterminated, at the end of its line: JSON strings hold no raw line break.
_LEXEME = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+("?)|[{}\n]')
_COLON = re.compile(rb"\s*+:\s*+")
_CALL_ON_NEXT_LINE = re.compile(rb'[ \t\r]*+\{[ \t]*+"name"')
_NEWLINE, _QUOTE, _OPENING_BRACE, _CLOSING_BRACE = b'\n"{}'


def spans_of(marks: Iterable[Mark], offset: int) -> tuple[Span, ...]:
    """The pieces after the first `offset` bytes, from 0, without the empty ones; neighbours of one region are joined.

    >>> [tuple(map(int, span)) for span in spans_of([(2, FORMAT), (5, FORMAT), (5, OTHER), (9, REASONING)], 3)]
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


def decode(data: bytes) -> str:
    """Bytes as text; what is not UTF-8 reads as U+FFFD."""
    return data.decode("utf-8", "replace")


def fill_text(marks: list[Mark], data: bytes, start: int, stop: int, region: Region = OTHER) -> bool:
    """Fill text that belongs to no call: white space at its borders is FORMAT, the rest `region`. True if any is."""
    text = data[start:stop]
    core = text.lstrip()
    if core:
        marks.append((stop - len(core), FORMAT))
        marks.append((stop - len(core) + len(core.rstrip()), region))
    marks.append((stop, FORMAT))
    return bool(core)


def fill_json_calls(
    marks: list[Mark],
    data: bytes,
    start: int,
    stop: int,
    *,
    closed: bool = True,
    by_line: bool = False,
    parameters: Collection[bytes] = (b"arguments", b"parameters"),
) -> None:
    """Fill `[start, stop)`, which holds calls as JSON objects, well-formed or not.

    A call begins at an opening brace outside of any call and ends at the matching brace.

    Args:
        marks: appended to.
        data: the text.
        start: first byte.
        stop: byte behind the last.
        closed: white space at the end is no part of a call that is never closed.
        by_line: a call that is never closed ends before a line that begins another.
        parameters: keys whose value, an object, is the call's parameters.
    """
    end = start + len(data[start:stop].rstrip()) if closed else stop
    outside = start  # where the text since the last call began
    depth = 0
    in_parameters = False
    key, value_at = b"", -1  # the last key at depth 1 and where its value begins
    for match in _LEXEME.finditer(data, start, end):
        at, after = match.span()
        kind = data[at]
        if kind == _OPENING_BRACE:
            if depth == 0:
                fill_text(marks, data, outside, at)
            elif depth == 1 and key in parameters and at == value_at:
                marks.append((at, FORMAT))
                in_parameters = True
            depth += 1
        elif depth == 0:
            continue
        elif kind == _NEWLINE:
            if by_line and _CALL_ON_NEXT_LINE.match(data, after, end):
                marks.append((at, TOOL_PARAMETERS if in_parameters else FORMAT))
                depth, in_parameters, key, outside = 0, False, b"", at
        elif kind == _QUOTE:
            if depth > 1:
                continue
            content_stop = match.start(1)
            if key == b"name" and at == value_at:
                marks.append((at + 1, FORMAT))
                marks.append((content_stop, TOOL_NAME))
                key = b""
            elif colon := _COLON.match(data, after, end):
                key, value_at = data[at + 1 : content_stop], colon.end()
        else:  # a closing brace
            depth -= 1
            if depth == 1 and in_parameters:
                marks.append((after, TOOL_PARAMETERS))
                in_parameters = False
            elif depth == 0:
                marks.append((after, FORMAT))
                key, outside = b"", after
    if depth > 0:
        marks.append((end, TOOL_PARAMETERS if in_parameters else FORMAT))
        outside = end
    fill_text(marks, data, outside, stop)


def object_end(data: bytes, start: int) -> int | None:
    """Where the JSON object ends that begins at `start`, by its braces; None: it does not."""
    depth = 0
    for match in _LEXEME.finditer(data, start):
        kind = data[match.start()]
        depth += (kind == _OPENING_BRACE) - (kind == _CLOSING_BRACE)
        if depth == 0:
            return match.end()
    return None


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


JSON = json.JSONDecoder(object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant, parse_float=_finite)
"""Reads what all readers of JSON read alike, and raises ValueError or RecursionError on the rest."""
