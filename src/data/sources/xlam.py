"""xLAM function-calling-60k (APIGen): one request, the calls that answer it."""

from __future__ import annotations

import re
from dataclasses import replace

from src.data.sources.base import REFUSAL, CorpusSource, dialogue_examples, json_calls
from src.data.sources.reading import Record, parse_json, require, unfenced
from src.data.sources.toolace import CALL, JSON_CALL, parse_calls
from src.data.sources.tools import check_on_offer, tool_specs
from src.protocol.dialogue import DataError, Dialogue, JsonValue, Message, ToolSpec, TurnExample

_OPENS_LIKE_JSON = re.compile(r"\s*(```\w*\s*)?($|[\[\s]*\{)")
_UNSPACED = re.compile(r"[^\W\d_\x00-\x7f]{2}")  # may be words of a script without spaces


class XlamSource(CorpusSource):
    """Records `{"query": …, "tools": …, "answers": …}`, the last two as JSON text (or already parsed).

    A tool is `{"name", "description", "parameters": {name: {"description", "type", "default"}}}`, an answer
    `{"name", "arguments"}`. Answers in text may also be calls as ToolACE has them (`parse_calls`). No answers, or any
    other text of two words or more that is no JSON, are a refusal: a response, tagged so.
    """

    default_name = "xlam"

    def convert(self, record: Record) -> list[TurnExample]:
        """The one example of a record."""
        where = record.where
        tools = tool_specs(_parsed(record, "tools"), where, "tools")
        query = require(record.value, "query", str, where)
        if not query.strip():
            raise DataError(where, "query", "a user's request", query)
        step = _step(record, tools)
        check_on_offer(step.calls, tools, where, "answers")
        dialogue = Dialogue(tools, (Message("user", query), step), self.name, record.id, where)
        examples = dialogue_examples(dialogue)
        return examples if step.calls else [replace(one, tags=("response", "refusal")) for one in examples]


def _parsed(record: Record, key: str) -> JsonValue:
    value = record.value.get(key)
    if isinstance(value, list | dict):
        return value
    return parse_json(unfenced(require(record.value, key, str, record.where)), record.where, key)


def _step(record: Record, tools: tuple[ToolSpec, ...]) -> Message:
    try:
        answers = _parsed(record, "answers")
    except DataError:
        text = record.value.get("answers")
        if not isinstance(text, str) or _OPENS_LIKE_JSON.match(text):
            raise
        text = text.strip()
        calls, response, _ = parse_calls(text, [tool.name for tool in tools], record.where, "answers")
        if calls:
            return Message("assistant", response, calls=calls)
        if text.startswith(("[", "```")) or '"arguments"' in text or CALL.match(text) or JSON_CALL.search(text):
            raise
        if sum(any(map(str.isalpha, word)) for word in text.split()) < 2 and not _UNSPACED.search(text):
            raise DataError(record.where, "answers", "a list of calls, or a refusal in words", text) from None
        return Message("assistant", text)
    calls = json_calls(answers, record.where, "answers")
    return Message("assistant", calls=calls) if calls else Message("assistant", REFUSAL)
