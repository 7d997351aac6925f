r"""`harmony`, of gpt-oss: messages in channels, each with a header, its text, and a token that ends it.

    <|channel|>analysis<|message|>It asks for the weather.<|end|><|start|>assistant
    <|channel|>commentary to=functions.sky <|constrain|>json<|message|>{"city": "Oslo"}<|call|>

(without the line break). `analysis` is the thought, `final` and a `commentary` to nobody are the response, a message to
a recipient is a call. `<|call|>` and `<|return|>` end generation and are no text of the answer, so that the last
message needs no end. Arguments are a JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.formats.marks import (
    FORMAT,
    JSON,
    TOOL_NAME,
    TOOL_PARAMETERS,
    decode,
    fill_text,
)
from src.protocol.formats.native import Answer, Thought
from src.protocol.types import ParsedResponse

_MESSAGE = b"<|message|>"
_END = re.compile(rb"<\|(?:end|call|return)\|>")
_START = b"<|start|>"
HEADER = re.compile(
    rb"\s*+(?:to=(?P<first>[^\s<]++)\s*+)?(?:<\|channel\|>(?P<channel>\w++)\s*+)?(?:to=(?P<then>[^\s<]++)\s*+)?"
    rb"(?:(?:<\|constrain\|>)?[\w.+/-]++)?\s*+"
)
"""Behind the role: recipient and channel in either order, and the type of the text."""
_ROLE = b"assistant"
_FUNCTIONS = b"functions."
_NOBODY = (b"assistant", b"python", b"browser", b"container")
"""Recipients that are no function of the request: the model itself, and tools of the server."""


class Harmony:
    """See the module."""

    name = "harmony"
    tool_call_parser: str | None = "openai"
    reasoning_parser: str | None = "openai_gptoss"

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        """See `OutputFormat.parse`."""
        answer = Answer(prefix + data, len(prefix))
        text, at = answer.data, 0
        while at < len(text):
            start = text.find(_MESSAGE, at)
            if start < 0:
                answer.stray(at, len(text))
                break
            ended = _END.search(text, start)
            stop, end = ended.span() if ended else (len(text), len(text))
            _read_message(answer, at, start, stop)
            answer.marks.append((end, FORMAT))
            at = _next_header(answer, end)
        return answer.read()

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """See `OutputFormat.step_text`."""
        parts = [f"<|channel|>analysis<|message|>{step.thought}"] if step.thought else []
        if step.text:
            parts.append(f"<|channel|>{'commentary' if step.calls else 'final'}<|message|>{step.text}")
        parts += [
            f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
            f"{json.dumps(call.parameters, ensure_ascii=False)}"
            for call in step.calls
        ]
        return "<|end|><|start|>assistant".join(parts)


def _next_header(answer: Answer, at: int) -> int:
    """Where the header of the next message begins, behind its role; what no message has is stray."""
    start = answer.data.find(_START, at)
    if start < 0:
        answer.stray(at, len(answer.data))
        return len(answer.data)
    answer.stray(at, start)
    behind = start + len(_START)
    behind += len(_ROLE) if answer.data.startswith(_ROLE, behind) else 0
    answer.marks.append((behind, FORMAT))
    return behind


def _read_message(answer: Answer, at: int, start: int, stop: int) -> None:
    """Read a message whose header is `[at, start)` and whose text ends at `stop`."""
    header = HEADER.fullmatch(answer.data, at, start)
    begin = start + len(_MESSAGE)
    if header is None:
        answer.stray(at, stop)
        return
    group = "first" if header["first"] else "then"
    recipient = header[group]
    if recipient and recipient.split(b".")[0] not in _NOBODY and recipient != _FUNCTIONS:
        called = recipient.removeprefix(_FUNCTIONS)
        answer.marks += [
            (header.end(group) - len(called), FORMAT),
            (header.end(group), TOOL_NAME),
            (begin, FORMAT),
        ]
        fill_text(answer.marks, answer.data, begin, stop, TOOL_PARAMETERS)
        answer.call(_call(decode(called), decode(answer.data[begin:stop])))
        return
    answer.marks.append((begin, FORMAT))
    channel = header["channel"]
    if channel == b"analysis":
        answer.think(Thought(begin, stop, stop, closed=True))
    elif channel == b"final" or (channel == b"commentary" and recipient is None):
        answer.say(begin, stop)
    else:
        answer.stray(begin, stop)


def _call(name: str, arguments: str) -> list[ToolCall] | None:
    try:
        value = JSON.decode(arguments.strip(" \t\r\n"))
    except (ValueError, RecursionError):
        return None
    return [ToolCall(name, value)] if isinstance(value, dict) else None
