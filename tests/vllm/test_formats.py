"""Our readers against vLLM's servers: 20,000 texts a format, a fifth as they should be, the rest with faults."""

from __future__ import annotations

from collections import Counter

import pytest

from src.protocol.formats.known import format_named
from tests.protocol.formats.texts import texts
from tests.vllm.oracles import HarmonyServer, Server, equal, why_different

pytestmark = pytest.mark.vllm
COUNT = 20_000


@pytest.mark.parametrize("name", ["hermes", "qwen3_xml", "llama3_json"])
def test_calls_are_those_of_the_server(name: str) -> None:
    """Or they differ for a reason that docs/formats.md gives."""
    form = format_named(name)
    assert form.tool_call_parser is not None
    server = Server(form.tool_call_parser, form.reasoning_parser)
    reasons: Counter[str] = Counter()
    for tools, _, text, _ in texts(form, COUNT, seed=7):
        parsed = form.parse(text.encode(), tools)
        theirs = server.calls(text, tools, thinking=parsed.fields[:1] == ("think",))
        if not equal(parsed.calls or (), theirs):
            reason = why_different(form, text, tools, theirs)
            assert reason is not None, f"{text!r}: {parsed.calls} against {theirs}"
            reasons[reason] += 1
    assert sum(reasons.values()) < COUNT / 100, reasons


def test_calls_of_harmony_are_those_of_its_parser() -> None:
    """A quarter of the mutated texts have a damaged header, of which vLLM skips tokens until it can go on."""
    form, server = format_named("harmony"), HarmonyServer()
    reasons: Counter[str] = Counter()
    for tools, _, text, whole in texts(form, COUNT, seed=7):
        theirs = server.calls(text, tools)
        if not equal(form.parse(text.encode(), tools).calls or (), theirs):
            reason = why_different(form, text, tools, theirs)
            assert reason is not None and not whole, f"{text!r}: {theirs}"
            reasons[reason] += 1
    assert sum(reasons.values()) < COUNT / 3, reasons
