"""ToolACE: multi-turn dialogues whose system prompt lists the tools as JSON and whose calls are `[Name(x="…")]`."""

from __future__ import annotations

import json

from src.data.sources.base import CorpusSource, dialogue_examples
from src.data.sources.call_syntax import CallSyntaxError, looks_like_calls, parse_calls
from src.data.sources.reading import Record, check_on_offer, require, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, ToolSpec, TurnExample

_LIST_MARKER = "Here is a list of functions in JSON format that you can invoke"
_SKIP_ADVICE = "Correct the record, or leave bad records out with on_bad_record=skip."


class ToolAceSource(CorpusSource):
    """Records `{"system": …, "conversations": [{"from": "user" | "assistant" | "tool", "value": …}, …]}`.

    An assistant message that opens like a call must be calls; text behind their closing bracket is a response of the
    same step. Every other assistant message is a response. A `tool` message is an observation.
    """

    @property
    def default_name(self) -> str:
        """`toolace`."""
        return "toolace"

    def convert(self, record: Record) -> list[TurnExample]:
        """One example an assistant step.

        Raises:
            DataError: the dialogue does not open with a user, or has no assistant step.
        """
        tools = _tools(require(record.value, "system", str, record.where), record.where)
        turns = require(record.value, "conversations", list, record.where)
        messages = [_message(turn, index, tools, record.where) for index, turn in enumerate(turns)]
        if not messages or messages[0].role != "user":
            raise DataError(record.where, "conversations[0].from", "a dialogue that a user opens", turns[:1])
        examples = dialogue_examples(Dialogue(tools, tuple(messages), self.name, record.id))
        if not examples:
            raise DataError(record.where, "conversations", "at least one assistant message", turns)
        return examples


def _tools(system: str, where: str) -> tuple[ToolSpec, ...]:
    """The first JSON list of named objects in the system prompt (behind the marker, where it has one)."""
    start = max(system.find(_LIST_MARKER), 0)
    decoder = json.JSONDecoder()
    while (start := system.find("[", start)) >= 0:
        try:
            tools = decoder.raw_decode(system, start)[0]
        except (json.JSONDecodeError, RecursionError):
            tools = None
        if isinstance(tools, list) and all(isinstance(tool, dict) and "name" in tool for tool in tools):
            return tool_specs(tools, where, "system")
        start += 1
    raise DataError(where, "system", "a JSON list of tools in the system prompt", system[-120:], _SKIP_ADVICE)


def _message(turn: JsonValue, index: int, tools: tuple[ToolSpec, ...], where: str) -> Message:
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
        raise DataError(where, prefix + "value", "calls or a response", turn["value"], _SKIP_ADVICE)
    if not looks_like_calls(text):
        return Message("assistant", text)
    try:
        calls, rest = parse_calls(text, [tool.name for tool in tools])
    except CallSyntaxError as error:
        expected = f"calls as [Name(parameter=value)], here {error}"
        raise DataError(where, prefix + "value", expected, text, _SKIP_ADVICE) from None
    check_on_offer(calls, tools, where, prefix + "value")
    return Message("assistant", rest, calls=calls)
