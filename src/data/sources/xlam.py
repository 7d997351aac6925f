"""xLAM function-calling-60k (APIGen): one request, the calls that answer it."""

from __future__ import annotations

import re
from dataclasses import replace

from src.data.sources.base import REFUSAL, CorpusSource, dialogue_examples, json_calls
from src.data.sources.reading import Record, parse_json, require, unfenced
from src.data.sources.tools import check_on_offer, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, TurnExample


class XlamSource(CorpusSource):
    """Records `{"query": …, "tools": …, "answers": …}`, the last two as JSON text (or already parsed).

    A tool is `{"name", "description", "parameters": {name: {"description", "type", "default"}}}`, an answer
    `{"name", "arguments"}`. No answers, or answers as text that is no JSON, are a refusal: a response, tagged so.
    """

    default_name = "xlam"

    def convert(self, record: Record) -> list[TurnExample]:
        """The one example of a record."""
        where = record.where
        tools = tool_specs(_parsed(record, "tools"), where, "tools")
        query = require(record.value, "query", str, where)
        if not query.strip():
            raise DataError(where, "query", "a user's request", query)
        step = _step(record)
        check_on_offer(step.calls, tools, where, "answers")
        dialogue = Dialogue(tools, (Message("user", query), step), self.name, record.id, where)
        examples = dialogue_examples(dialogue)
        return examples if step.calls else [replace(one, tags=("response", "refusal")) for one in examples]


def _parsed(record: Record, key: str) -> JsonValue:
    value = record.value.get(key)
    if isinstance(value, list | dict):
        return value
    return parse_json(unfenced(require(record.value, key, str, record.where)), record.where, key)


def _step(record: Record) -> Message:
    try:
        answers = _parsed(record, "answers")
    except DataError:
        text = record.value.get("answers")
        if not isinstance(text, str) or re.match(r"\s*($|[\[{]|```)", text) or '"arguments"' in text:
            raise
        return Message("assistant", text.strip())
    calls = json_calls(answers, record.where, "answers")
    return Message("assistant", calls=calls) if calls else Message("assistant", REFUSAL)
