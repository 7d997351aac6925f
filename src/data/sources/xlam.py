"""xLAM function-calling-60k (APIGen): one request, the calls that answer it."""

from __future__ import annotations

from src.data.sources.base import CorpusSource, dialogue_examples
from src.data.sources.reading import Record, parse_json, require
from src.data.sources.tools import check_on_offer, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, ToolCall, TurnExample


class XlamSource(CorpusSource):
    """Records `{"query": …, "tools": …, "answers": …}`, the last two as JSON text (or already parsed).

    A tool is `{"name", "description", "parameters": {name: {"description", "type", "default"}}}`, an answer
    `{"name", "arguments"}`.
    """

    default_name = "xlam"

    def convert(self, record: Record) -> list[TurnExample]:
        """The one example of a record."""
        where = record.where
        tools = tool_specs(_parsed(record, "tools"), where, "tools")
        calls = _calls(_parsed(record, "answers"), where)
        check_on_offer(calls, tools, where, "answers")
        query = Message("user", require(record.value, "query", str, where))
        dialogue = Dialogue(tools, (query, Message("assistant", calls=calls)), self.name, record.id)
        return dialogue_examples(dialogue)


def _parsed(record: Record, key: str) -> JsonValue:
    value = record.value.get(key)
    if isinstance(value, list):
        return value
    return parse_json(require(record.value, key, str, record.where), record.where, key)


def _calls(answers: JsonValue, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(answers, list) or not answers:
        raise DataError(where, "answers", "a list of at least one call", answers)
    calls = []
    for index, answer in enumerate(answers):
        prefix = f"answers[{index}]."
        if not isinstance(answer, dict):
            raise DataError(where, prefix[:-1], "an object", answer)
        name = require(answer, "name", str, where, prefix)
        calls.append(ToolCall(name, require(answer, "arguments", dict, where, prefix)))
    return tuple(calls)
