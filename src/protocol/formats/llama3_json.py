r"""`llama3_json`, of Llama 3.1 to 3.3: the answer is a JSON object, or several with `;` between them.

    {"name": "sky", "parameters": {"city": "Oslo"}}

As in vLLM, every `{` outside of an object must begin one with `name` and `parameters` (or `arguments`): else the answer
holds no call. What stands around the objects says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.formats.hermes import json_call
from src.protocol.formats.marks import FORMAT, decode, fill_json_calls, fill_text, object_end
from src.protocol.formats.native import Answer, joined
from src.protocol.types import ParsedResponse

_BEGINNING = re.compile(rb"\s*+(?:<\|python_tag\|>|\{)")
_SEPARATOR = re.compile(rb"[\s;]*+(?:<\|python_tag\|>)?\s*+")
_KEYS = ("arguments", "parameters")


class Llama3Json:
    """See the module."""

    name = "llama3_json"
    tool_call_parser: str | None = "llama3_json"
    reasoning_parser: str | None = None

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        """See `OutputFormat.parse`."""
        answer = Answer(prefix + data, len(prefix))
        objects = _objects(answer.data)
        at = 0
        if objects is None and _BEGINNING.match(answer.data):
            fill_json_calls(answer.marks, answer.data, 0, len(answer.data), closed=False)
            answer.call(None)
            return answer.read()
        if not objects:
            answer.say(0, len(answer.data))
            return answer.read()
        for start, stop, call, more in objects:
            answer.call([call], more=more or _fill_between(answer, at, start))
            fill_json_calls(answer.marks, answer.data, start, stop)
            at = stop
        answer.call([], more=_fill_between(answer, at, len(answer.data)))
        return answer.read()

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """See `OutputFormat.step_text`."""
        calls = [json.dumps({"name": c.name, "parameters": c.parameters}, ensure_ascii=False) for c in step.calls]
        return joined([step.text, "; ".join(calls)])


def _fill_between(answer: Answer, start: int, stop: int) -> bool:
    """Fill what stands around calls; whether it is more than a separator."""
    if _SEPARATOR.fullmatch(answer.data, start, stop):
        answer.marks.append((stop, FORMAT))
        return False
    return fill_text(answer.marks, answer.data, start, stop)


def _objects(data: bytes) -> list[tuple[int, int, ToolCall, bool]] | None:
    """Where each object begins and ends, its call, and whether it has more keys; None if one is no call."""
    found = []
    start = data.find(b"{")
    while start >= 0:
        stop = object_end(data, start)
        call, more = (None, False) if stop is None else json_call(decode(data[start:stop]), _KEYS)
        if stop is None or call is None:
            return None
        found.append((start, stop, call, more))
        start = data.find(b"{", stop + 1)  # one that touches the object before is skipped, as in vLLM
    return found
