"""What vLLM's server reads from an answer: its reasoning parser, then its tool parser, with the request's tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from src.protocol.dialogue import ToolCall, ToolSpec
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


def wrapped(tool: ToolSpec) -> dict[str, Any]:
    """A tool as OpenAI has it."""
    json = dict(tool.json)
    return json if "function" in json else {"type": "function", "function": json}
