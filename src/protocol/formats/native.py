"""What the formats share that models bring themselves: a thought, then text, then calls.

Servers read such an answer in two steps, and so do these: what a reasoning parser takes as the thought, then calls in
what is left. Text before the first call is the response; text behind a call belongs to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from src.protocol.dialogue import ToolCall
from src.protocol.formats.marks import FORMAT, REASONING, RESPONSE, Mark, decode, fill_text, spans_of
from src.protocol.types import ParsedResponse

_OPENED = re.compile(rb"\s*+<think>")
_END_OF_THOUGHT = re.compile(rb"</think>|(?=<tool_call>)")


class Thought(NamedTuple):
    """The thought of an answer: its content is `[start, stop)`, what follows begins at `end`."""

    start: int
    stop: int
    end: int
    closed: bool


def find_thought(data: bytes) -> Thought | None:
    """The thought that an answer opens with; None if it opens with something else.

    It ends at `</think>`, or before a `<tool_call>`, which no thought can mention: vLLM's reader takes it for a call.
    """
    opened = _OPENED.match(data)
    if opened is None:
        return None
    found = _END_OF_THOUGHT.search(data, opened.end())
    if found is None:
        return Thought(opened.end(), len(data), len(data), closed=False)
    return Thought(opened.end(), found.start(), found.end(), closed=found.end() > found.start())


class Answer:
    """Collects what is read of an answer, front to back.

    Args:
        data: prefix and text.
        offset: bytes of the prefix.
    """

    def __init__(self, data: bytes, offset: int) -> None:
        self.data, self._offset = data, offset
        self.marks: list[Mark] = []
        self._fields: list[str] = []
        self._closed: list[bool] = []
        self._thought: str | None = None
        self._response: str | None = None
        self._calls: list[ToolCall] | None = None
        self._broken = False
        self._stray = False

    def think(self, thought: Thought) -> None:
        """Take a thought, with its tags."""
        self.marks += [(thought.start, FORMAT), (thought.stop, REASONING), (thought.end, FORMAT)]
        self._add("think", thought.closed)
        self._thought = decode(self.data[thought.start : thought.stop])

    def say(self, start: int, stop: int) -> None:
        """Take text: the response where no call came before it, else stray."""
        if self._calls is not None or self._response is not None:
            self.stray(start, stop)
        elif fill_text(self.marks, self.data, start, stop, RESPONSE):
            self._add("response", True)
            self._response = decode(self.data[start:stop].strip())

    def stray(self, start: int, stop: int) -> None:
        """Take text that belongs to nothing."""
        self._stray |= fill_text(self.marks, self.data, start, stop)

    def call(self, calls: Iterable[ToolCall] | None, *, closed: bool = True, more: bool = False) -> None:
        """Take a block of calls, whose marks are filled by the caller.

        Args:
            calls: None if it holds something else.
            closed: it has its end.
            more: it holds more than calls.
        """
        self._add("tool_call", closed)
        self._calls = self._calls or []
        if calls is None:
            self._broken = True
        else:
            self._calls += calls
        self._stray |= more

    def _add(self, name: str, closed: bool) -> None:
        if self._fields and self._fields[-1] == name:
            self._closed[-1] &= closed
        else:
            self._fields.append(name)
            self._closed.append(closed)

    def read(self) -> ParsedResponse:
        """All of it."""
        return ParsedResponse(
            fields=tuple(self._fields),
            closed=tuple(self._closed),
            thought=self._thought,
            calls=None if self._broken or self._calls is None else tuple(self._calls),
            response=self._response,
            spans=spans_of(self.marks, self._offset),
            size=len(self.data) - self._offset,
            stray=self._stray or self._broken,
            native=True,
        )


def behind_thought(data: bytes, prefix: bytes) -> tuple[Answer, int]:
    """An answer whose thought is taken, if it opens with one, and where what follows begins."""
    answer = Answer(prefix + data, len(prefix))
    thought = find_thought(answer.data)
    if thought is None:
        return answer, 0
    answer.think(thought)
    return answer, thought.end


def joined(parts: Sequence[str]) -> str:
    """The parts of a step that are there, a blank line between them."""
    return "\n\n".join(part for part in parts if part)
