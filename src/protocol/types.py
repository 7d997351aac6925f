"""What the output protocol produces: regions, spans and parsed responses.

Text positions are byte offsets into the UTF-8 encoding of the response, so that they line up with tokens, which are
byte strings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from src.protocol.dialogue import ToolCall


class Region(IntEnum):
    """The part of a response that a sampled token belongs to; every token belongs to exactly one."""

    FORMAT = 0
    TOOL_NAME = 1
    TOOL_PARAMETERS = 2
    REASONING = 3
    RESPONSE = 4
    OTHER = 5

    @property
    def label(self) -> str:
        """Lower-case name for configs, metrics and logs: `tool_name`."""
        return self.name.lower()


class Span(NamedTuple):
    """Bytes `[start, stop)` of the response and the region that they belong to."""

    start: int
    stop: int
    region: Region


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A response read by the output protocol. Every field is there for any text; see `OutputFormat`.

    Attributes:
        fields: tags opened at the top level, in order of appearance, e.g. `("think", "tool_call")`.
        closed: the same tags, whether each was closed.
        thought: text inside think, or None without one.
        calls: calls of all tool_call blocks, in order, or None where there is no block, one is not closed, or a line of
            one is not a call.
        response: text inside response, or None without one.
        spans: a partition of `[0, size)` in order; neighbours differ in region.
        size: bytes of the response.
        stray: anything but white space stands outside of the fields.
        native: the format is the model's own, in which a step need not have a thought, and text comes before calls.
    """

    fields: tuple[str, ...]
    closed: tuple[bool, ...]
    thought: str | None
    calls: tuple[ToolCall, ...] | None
    response: str | None
    spans: tuple[Span, ...]
    size: int
    stray: bool = False
    native: bool = False

    @property
    def unreadable(self) -> bool:
        """Whether it tries to call and its calls cannot be read."""
        return self.calls is None and "tool_call" in self.fields

    def cut(self) -> ParsedResponse:
        """The same of a response that ends without its stop token: its last field has no end."""
        return replace(self, closed=(*self.closed[:-1], False)) if self.closed else self
