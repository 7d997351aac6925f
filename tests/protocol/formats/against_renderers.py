"""Our readers against those of the package `renderers`, on the texts of `tests/vllm/test_formats.py`.

From a folder of its own, because it brings another `openai_harmony` than vLLM does. Its reader for gpt-oss takes
harmony's encoding from the network and is left out:

    pip install --target logs/renderers --no-deps renderers==0.1.12 openai openai-harmony tiktoken prime-pydantic-config
    PYTHONPATH=logs/renderers python -m tests.protocol.formats.against_renderers
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from typing import Any

from transformers import AutoTokenizer

from src.protocol.dialogue import ToolCall
from src.protocol.formats.known import format_named
from tests.conftest import ROOT
from tests.protocol.formats.texts import texts
from tests.vllm.oracles import MARKS, equal, wrapped

log = logging.getLogger(__name__)


def main() -> None:
    """Print, by format, how many texts are read differently: as they should be, with a malformed call, others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--show", type=int, default=0, help="print so many of the others")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/models/tiny", model_max_length=1_000_000)
    tokenizer.add_tokens([mark for mark in MARKS if mark not in tokenizer.get_vocab()])
    for name in ("hermes", "qwen3_xml", "llama3_json"):
        form = format_named(name)
        different: Counter[str] = Counter()
        for tools, _, text, whole in texts(form, args.count, seed=7):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            attempts = read(name, tokenizer, ids, [wrapped(tool)["function"] for tool in tools])
            theirs = [ToolCall(call.name, call.arguments) for call in attempts if call.status.value == "ok"]
            ours = form.parse(text.encode(), tools).calls or ()
            if not equal(ours, theirs):
                malformed = len(theirs) < len(attempts)
                kind = "as it should be" if whole else "a malformed call" if malformed else "other"
                different[kind] += 1
                if kind == "other" and different[kind] <= args.show:
                    log.info("%r\n  ours %s\n  theirs %s", text, ours, theirs)
        log.info("%s: %s", name, dict(different))


def read(name: str, tokenizer: Any, ids: list[int], tools: list[dict[str, Any]]) -> Any:
    """Its calls, the malformed ones too."""
    from renderers import parsing

    if name == "llama3_json":
        return parsing.parse_llama_3(tokenizer, ids, stop_ids=set()).tool_calls
    marks = {"tool_call_id": "<tool_call>", "tool_call_end_id": "</tool_call>"}
    if name == "hermes":
        marks |= {"reasoning_end_id": "</think>"}
        return parsing.parse_qwen3(tokenizer, ids, stop_ids=set(), **ids_of(marks, tokenizer)).tool_calls
    marks |= {"think_id": "<think>", "think_end_id": "</think>"}
    return parsing.parse_qwen35(tokenizer, ids, stop_ids=set(), tools=tools, **ids_of(marks, tokenizer)).tool_calls


def ids_of(marks: dict[str, str], tokenizer: Any) -> dict[str, int]:
    """The token of each mark."""
    return {key: tokenizer.convert_tokens_to_ids(mark) for key, mark in marks.items()}


if __name__ == "__main__":
    main()
