"""What vLLM's server reads from an answer: its reasoning parser, then its tool parser, with the request's tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from src.protocol.dialogue import ToolCall, ToolSpec
from src.protocol.formats import harmony, hermes
from src.protocol.matching import json_equal
from src.protocol.output_format import OutputFormat
from tests.conftest import ROOT

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>")


class Server:
    """Reads as `vllm serve --tool-call-parser NAME --reasoning-parser NAME` does.

    Args:
        tool_parser: vLLM's name.
        reasoning_parser: vLLM's name; None: none is set.
    """

    def __init__(self, tool_parser: str, reasoning_parser: str | None) -> None:
        from vllm.parser.parser_manager import ParserManager

        self._tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/models/tiny")
        self._tokenizer.add_tokens([mark for mark in MARKS if mark not in self._tokenizer.get_vocab()])
        self._parser = ParserManager.get_parser(
            tool_parser_name=tool_parser, reasoning_parser_name=reasoning_parser, enable_auto_tools=True
        )

    def calls(self, text: str, tools: Sequence[ToolSpec], thinking: bool) -> list[ToolCall]:
        """The calls of an answer; `thinking` is what the request says of the template."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request: Any = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}], model="m", tools=[wrapped(tool) for tool in tools] or None
        )
        settings = {"enable_thinking": thinking}
        parser = self._parser(self._tokenizer, request.tools, chat_template_kwargs=settings)
        _, _, calls = parser.parse(text, request, enable_auto_tools=True)
        return [ToolCall(call.name, json.loads(call.arguments)) for call in calls or ()]


class HarmonyServer:
    """Reads ids, as vLLM does for gpt-oss; text becomes ids by harmony's own encoding."""

    def __init__(self) -> None:
        from vllm.entrypoints.openai.parser.harmony_utils import get_encoding
        from vllm.parser.parser_manager import ParserManager

        self._encoding = get_encoding()
        self._tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/models/tiny")
        self._parser = ParserManager.get_parser(
            tool_parser_name="openai", reasoning_parser_name="openai_gptoss", enable_auto_tools=True, is_harmony=True
        )

    def calls(self, text: str, tools: Sequence[ToolSpec]) -> list[ToolCall]:
        """The calls of an answer."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request: Any = ChatCompletionRequest(
            messages=[{"role": "user", "content": "?"}], model="m", tools=[wrapped(tool) for tool in tools] or None
        )
        ids = self._encoding.encode(text, allowed_special="all")
        _, _, calls = self._parser(self._tokenizer, request.tools).parse(
            text, request, enable_auto_tools=True, model_output_token_ids=ids
        )
        return [ToolCall(call.name, parsed(call.arguments)) for call in calls or ()]


def parsed(arguments: str) -> Any:
    """Arguments as a client reads them; the text where it is no JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def wrapped(tool: ToolSpec) -> dict[str, Any]:
    """A tool as OpenAI has it."""
    json = dict(tool.json)
    return json if "function" in json else {"type": "function", "function": json}


FURTHER_END = "a </think> behind the thought, which vLLM drops"
LENIENT = "JSON that readers take differently: a key twice, NaN, a number that no float holds"
HEADER = "a message of harmony that is cut, or whose header is damaged"
NO_OBJECT = "arguments that are no object"


def why_different(form: OutputFormat, text: str, tools: Sequence[ToolSpec], theirs: Sequence[ToolCall]) -> str | None:
    """Why our calls are not vLLM's, as docs/formats.md lists it; None: for no reason that is known."""
    if form.name == "harmony" and not headers_are_whole(text):
        return HEADER
    if any(not isinstance(call.parameters, dict) for call in theirs):
        return NO_OBJECT
    head, end, rest = text.partition("</think>")
    if "</think>" in rest and equal(read(form, head + end + rest.replace("</think>", ""), tools), theirs):
        return FURTHER_END
    if "</think>" in text and equal(read(form, text.replace("</think>", ""), tools), theirs):
        return FURTHER_END
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hermes, "JSON", json.JSONDecoder())
        patched.setattr(harmony, "JSON", json.JSONDecoder())
        return LENIENT if equal(read(form, text, tools), theirs) else None


def headers_are_whole(text: str) -> bool:
    """Whether every message has a role, a header as the model was taught it, and its token in front of the text."""
    for index, message in enumerate(re.split(r"<\|(?:end|call|return)\|>", text)):
        header, found, body = message.partition("<|message|>")
        if not found or re.search(r"<\|\w+\|>", body):
            return False
        if index and not header.startswith("<|start|>assistant"):
            return False
        if not harmony.HEADER.fullmatch(header.removeprefix("<|start|>assistant").encode()):
            return False
    return True


def read(form: OutputFormat, text: str, tools: Sequence[ToolSpec]) -> Sequence[ToolCall]:
    """Our calls."""
    return form.parse(text.encode(), tools).calls or ()


def equal(ours: Sequence[ToolCall], theirs: Sequence[ToolCall]) -> bool:
    """Whether these are the same calls in the same order."""
    return len(ours) == len(theirs) and all(
        a.name == b.name and json_equal(a.parameters, b.parameters) for a, b in zip(ours, theirs, strict=True)
    )
