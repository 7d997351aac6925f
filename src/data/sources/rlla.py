"""The published mix (ToolRL's `rlla`): prompts that are already rendered, targets in the output protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from src.data.sources.base import CorpusSource, target_tags
from src.data.sources.reading import Record, check_json, parse_json, require
from src.protocol.dialogue import (
    THOUGHT_OF_CALLS,
    THOUGHT_OF_RESPONSE,
    ChatPrompt,
    DataError,
    JsonValue,
    Message,
    TurnExample,
)
from src.protocol.formats.rest import parse
from src.protocol.types import ParsedResponse, Region

_ORDERS = (("think", "tool_call"), ("think", "response"), ("think", "tool_call", "response"))


class RllaSource(CorpusSource):
    """Reads both published shapes, record by record.

    The SFT file has `{"instruction", "input", "output"}`; the reinforcement-learning parquet has `prompt` (a system and
    a user message) and `reward_model.ground_truth` (the target text).

    Args:
        thoughts: `keep` the distilled thoughts of the SFT file, or put the parquet's `placeholder` in their place, for
            a policy that has no room for long thoughts. An empty thought is always replaced.
        **corpus: see `CorpusSource`.
    """

    default_name = "rlla"

    def __init__(self, thoughts: Literal["keep", "placeholder"] = "keep", **corpus: Any) -> None:
        super().__init__(**corpus)
        if thoughts not in ("keep", "placeholder"):
            raise ValueError(f"thoughts: expected 'keep' or 'placeholder', found {thoughts!r}.")
        self.thoughts = thoughts

    def convert(self, record: Record) -> list[TurnExample]:
        """The one example of a record."""
        if "prompt" in record.value or "reward_model" in record.value:
            prompt = _chat_prompt(record)
            field = "reward_model.ground_truth"
            reward_model = require(record.value, "reward_model", dict, record.where)
            text = require(reward_model, "ground_truth", str, record.where, "reward_model.")
        else:
            system = require(record.value, "instruction", str, record.where)
            prompt = ChatPrompt(system, require(record.value, "input", str, record.where))
            field = "output"
            text = require(record.value, "output", str, record.where)
        target = parse_target(text, record.where, field)
        check_json([{call.name: call.parameters} for call in target.calls], record.where, field)
        if self.thoughts == "placeholder" or not target.thought:
            target = replace(target, thought=THOUGHT_OF_CALLS if target.calls else THOUGHT_OF_RESPONSE)
        return [TurnExample((), (), target, self.name, record.id, prompt, target_tags(target), record.where)]


def parse_target(text: str, where: str, field: str) -> Message:
    """Read a target text, strictly: a closed think, then a closed tool_call and/or response, and nothing else.

    Tags inside think are text. Calls are JSON objects with `name` and `parameters`, one a line.

    Raises:
        DataError: saying which of these does not hold.
    """
    parsed = parse(text)
    for name, closed in zip(parsed.fields, parsed.closed, strict=True):
        if not closed:
            raise DataError(where, field, f"<{name}> closed by </{name}>", _tail(text))
    if parsed.fields not in _ORDERS:
        expected = "<think>, then <tool_call> and/or <response>, each once and in this order"
        raise DataError(where, field, expected, " ".join(f"<{name}>" for name in parsed.fields) or _tail(text))
    if "tool_call" in parsed.fields and not parsed.calls:
        raise DataError(where, field, 'calls as {"name": …, "parameters": {…}}, one a line', _bad_call(text))
    if outside := _outside(text, parsed):
        raise DataError(where, field, "no text outside the fields", outside)
    response = (parsed.response or "").strip()
    if "response" in parsed.fields and not response:
        raise DataError(where, field, "text inside <response>", _tail(text))
    return Message("assistant", response, (parsed.thought or "").strip(), parsed.calls or ())


def _outside(text: str, parsed: ParsedResponse) -> str:
    """The first text, white space aside, that is in no field."""
    data = text.encode("utf-8", "surrogatepass")
    for span in parsed.spans:
        if span.region is Region.OTHER and (part := data[span.start : span.stop].decode(errors="replace").strip()):
            return part
    return ""


def _bad_call(text: str) -> str:
    """The line of the tool_call block that is no call."""
    block = text.split("</think>", 1)[-1].split("<tool_call>", 1)[-1].split("</tool_call>", 1)[0]
    lines = [line for line in block.splitlines() if line.strip()]
    return next((line for line in lines if not _is_call(line)), block)


def _is_call(line: str) -> bool:
    try:
        call = parse_json(line, "", "")
    except DataError:
        return False
    return isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("parameters"), dict)


def _tail(text: str) -> str:
    return text if len(text) <= 120 else "…" + text[-120:]


def _chat_prompt(record: Record) -> ChatPrompt:
    messages: list[JsonValue] = require(record.value, "prompt", list, record.where)
    roles = [message.get("role") if isinstance(message, dict) else message for message in messages]
    if roles != ["system", "user"]:
        raise DataError(record.where, "prompt", "a system and a user message", roles)
    system, user = (
        require(message, "content", str, record.where, f"prompt[{index}].") for index, message in enumerate(messages)
    )
    return ChatPrompt(system, user)
