"""The output protocol: text to `ParsedResponse`. The only place that knows its tags.

A response is a sequence of fields, `<think>`, `<tool_call>` and `<response>`. A field ends at the first closing tag of
its own name and everything until there belongs to it, so a thought may mention any other tag. What is never closed
runs to the end of the text.

A tool_call block holds one call a line; blank lines are white space. A call is a JSON object with exactly the keys
`name` (a string) and `parameters` (an object). These are not calls, because no two readers agree on them: NaN and
Infinity (not JSON), an object with a key twice, JSON nested deeper than the interpreter's recursion limit.

Regions do not depend on whether the calls are valid: they are found lexically, in one pass, for the calls of every
block. Nothing here raises on any text, and the time taken is linear in its length.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from src.data.dialogue import ToolCall
from src.protocol.types import ParsedResponse, Region, Span

_OPENING_TAG = re.compile(rb"<(think|tool_call|response)>")
# A string ends at its closing quote or, unterminated, at the end of its line: JSON strings hold no raw line break.
_LEXEME = re.compile(rb'"(?:[^"\\\n]++|\\[^\n])*+("?)|[{}\n]')
_COLON = re.compile(rb"\s*+:\s*+")
_CALL_ON_NEXT_LINE = re.compile(rb'[ \t\r]*+\{[ \t]*+"name"')

_NEWLINE, _QUOTE, _OPENING_BRACE = ord("\n"), ord('"'), ord("{")


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
    spans = _SpanBuilder(offset=len(prefix))
    fields = _split_fields(data)
    stray = False
    position = 0
    for field in fields:
        stray |= _fill_outside(spans, data, position, field.opening)
        spans.fill(field.start, Region.FORMAT)
        if field.name == "tool_call":
            _fill_block(spans, data, field)
        else:
            spans.fill(field.stop, Region.REASONING if field.name == "think" else Region.RESPONSE)
        spans.fill(field.end, Region.FORMAT)
        position = field.end
    stray |= _fill_outside(spans, data, position, len(data))

    first = {field.name: field for field in reversed(fields)}
    contents = {name: data[field.start : field.stop] for name, field in first.items()}
    block = first.get("tool_call")
    return ParsedResponse(
        fields=tuple(field.name for field in fields),
        closed=tuple(field.closed for field in fields),
        thought=_decode(contents["think"]) if "think" in contents else None,
        calls=_parse_calls(contents["tool_call"]) if block is not None and block.closed else None,
        response=_decode(contents["response"]) if "response" in contents else None,
        spans=spans.spans(),
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


class _SpanBuilder:
    """Fills the text from left to right; positions are given in prefix + text, spans are kept in text."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._filled = 0
        self._stops: list[int] = []
        self._regions: list[Region] = []

    def fill(self, stop: int, region: Region) -> None:
        """Give `region` to everything from where the last fill stopped up to `stop`."""
        stop -= self._offset
        if stop <= self._filled:
            return
        self._filled = stop
        if self._regions and self._regions[-1] is region:
            self._stops[-1] = stop
        else:
            self._stops.append(stop)
            self._regions.append(region)

    def spans(self) -> tuple[Span, ...]:
        """What was filled; neighbours differ in region."""
        return tuple(map(Span, [0, *self._stops], self._stops, self._regions))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _split_fields(data: bytes) -> list[_Field]:
    fields = []
    position = 0
    while match := _OPENING_TAG.search(data, position):
        closing_tag = b"</" + match[1] + b">"
        stop = data.find(closing_tag, match.end())
        closed = stop >= 0
        if not closed:
            stop = len(data)
        position = stop + len(closing_tag) if closed else stop
        fields.append(_Field(match[1].decode(), match.start(), match.end(), stop, position, closed))
    return fields


def _fill_outside(spans: _SpanBuilder, data: bytes, start: int, stop: int) -> bool:
    """Fill what belongs to no field or call: white space at its borders is FORMAT, the rest OTHER. True if any is."""
    text = data[start:stop]
    core = text.lstrip()
    if core:
        spans.fill(stop - len(core), Region.FORMAT)
        spans.fill(stop - len(core) + len(core.rstrip()), Region.OTHER)
    spans.fill(stop, Region.FORMAT)
    return bool(core)


def _fill_block(spans: _SpanBuilder, data: bytes, field: _Field) -> None:
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
                _fill_outside(spans, data, outside, at)
            elif depth == 1 and key == b"parameters" and at == value_at:
                spans.fill(at, Region.FORMAT)
                in_parameters = True
            depth += 1
        elif depth == 0:
            continue
        elif kind == _NEWLINE:
            if _CALL_ON_NEXT_LINE.match(data, after, stop):
                spans.fill(at, Region.TOOL_PARAMETERS if in_parameters else Region.FORMAT)
                depth, in_parameters, key, outside = 0, False, b"", at
        elif kind == _QUOTE:
            if depth > 1:
                continue
            content_stop = match.start(1)
            if key == b"name" and at == value_at:
                spans.fill(at + 1, Region.FORMAT)
                spans.fill(content_stop, Region.TOOL_NAME)
                key = b""
            elif colon := _COLON.match(data, after, stop):
                key, value_at = data[at + 1 : content_stop], colon.end()
        else:  # a closing brace
            depth -= 1
            if depth == 1 and in_parameters:
                spans.fill(after, Region.TOOL_PARAMETERS)
                in_parameters = False
            elif depth == 0:
                spans.fill(after, Region.FORMAT)
                key, outside = b"", after
    if depth > 0:
        spans.fill(stop, Region.TOOL_PARAMETERS if in_parameters else Region.FORMAT)
        outside = stop
    _fill_outside(spans, data, outside, field.stop)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant)


def _parse_calls(block: bytes) -> tuple[ToolCall, ...] | None:
    """The calls of a block, one a line; None if any line is not a call."""
    calls = []
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = _JSON.decode(_decode(line))
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.keys() != {"name", "parameters"}:
            return None
        if not isinstance(value["name"], str) or not isinstance(value["parameters"], dict):
            return None
        calls.append(ToolCall(value["name"], value["parameters"]))
    return tuple(calls)
