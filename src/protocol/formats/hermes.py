r"""`hermes`, of Qwen2.5, Qwen3, Hermes and others: a JSON object in each `<tool_call>`.

    <think>
    It asks for the weather.
    </think>

    <tool_call>
    {"name": "sky", "arguments": {"city": "Oslo"}}
    </tool_call>

A call is a JSON object with `name`, a string, and `arguments`, an object. As in vLLM, one block that is none makes all
calls of the answer text, and a block that is not closed is read to the end of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.formats.marks import FORMAT, JSON, decode, fill_json_calls
from src.protocol.formats.native import behind_thought, joined
from src.protocol.types import ParsedResponse

_OPENING, _CLOSING = b"<tool_call>", b"</tool_call>"


class Hermes:
    """See the module."""

    name = "hermes"
    tool_call_parser: str | None = "hermes"
    reasoning_parser: str | None = "qwen3"

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        """See `OutputFormat.parse`."""
        answer, at = behind_thought(data, prefix)
        while (opening := answer.data.find(_OPENING, at)) >= 0:
            answer.say(at, opening)
            start = opening + len(_OPENING)
            stop = answer.data.find(_CLOSING, start)
            closed = stop >= 0
            stop = stop if closed else len(answer.data)
            at = stop + len(_CLOSING) if closed else stop
            answer.marks.append((start, FORMAT))
            fill_json_calls(answer.marks, answer.data, start, stop, closed=closed)
            answer.marks.append((at, FORMAT))
            call, more = json_call(decode(answer.data[start:stop]))
            answer.call(None if call is None else [call], closed=closed, more=more)
        answer.say(at, len(answer.data))
        return answer.read()

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """See `OutputFormat.step_text`."""
        calls = [
            f"<tool_call>\n{json.dumps({'name': c.name, 'arguments': c.parameters}, ensure_ascii=False)}\n</tool_call>"
            for c in step.calls
        ]
        thought = f"<think>\n{step.thought}\n</think>" if step.thought else ""
        said = "\n".join(part for part in (step.text, *calls) if part)
        return joined([thought, said])


def json_call(text: str, arguments: Collection[str] = ("arguments",)) -> tuple[ToolCall | None, bool]:
    """The call that a text is, None if it is none; and whether its object has further keys.

    Args:
        text: a JSON object with white space around it.
        arguments: keys that the parameters may have.
    """
    try:
        value = JSON.decode(text.strip(" \t\r\n"))
    except (ValueError, RecursionError):
        return None, False
    if not isinstance(value, dict):
        return None, False
    name = value.get("name")
    parameters = next((value[key] for key in arguments if key in value), None)
    if not isinstance(name, str) or not isinstance(parameters, dict):
        return None, False
    return ToolCall(name, parameters), len(value) > 2
