"""(b) Sampling: the native engine against transformers' generate and vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result, take_turns, times_as_fast
from tests.benchmarks.sections.update import DifferentWorkError
from tests.benchmarks.serving import Contestant

_PROMPT, _NEW = 600, 64
_CACHE_GIB = 2
SHAPES = {
    "8 completions of one prompt": {"prompts": 1, "completions": 8, "generate": 4.0, "vLLM": 1.0},
    "16 prompts": {"prompts": 16, "completions": 1, "generate": 1.5, "vLLM": 1.0},
}
"""And the bars, in times as fast. vLLM's is for SmolLM2."""


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        tokens = min(_PROMPT, setting.prompt_tokens)
        new = min(_NEW, setting.new_tokens)
        folder = bench.model(setting)
        with ExitStack() as stack:
            contestants = {
                "ours": stack.enter_context(bench.start("rollout", {"folder": folder, "form": "ours"})),
                "generate": stack.enter_context(bench.start("rollout", {"folder": folder, "form": "generate"})),
            }
            if has_peer("vllm"):
                job = {"folder": folder, "cache_gib": _CACHE_GIB, "max_tokens": tokens + new}
                contestants["vLLM"] = stack.enter_context(bench.start("vllm", job))
            for name, shape in SHAPES.items():
                work = {
                    "prompts": bench.prompts(setting, tokens, int(shape["prompts"])),
                    "completions": int(shape["completions"]),
                    "new_tokens": new,
                }
                runs = {key: _timed(key, contestant, work) for key, contestant in contestants.items()}
                seconds = take_turns(runs, bench.repeats)
                bars = {
                    "generate": shape["generate"],
                    "vLLM": shape["vLLM"] if setting.name == "smollm2" else None,
                }
                yield from times_as_fast("rollout", setting.name, f"{name}, P={tokens} R={new}", seconds, bars)


def _timed(name: str, contestant: Contestant, work: dict[str, Any]) -> Any:
    expected = len(work["prompts"]) * work["completions"] * work["new_tokens"]

    def run(_: int) -> float:
        reply = contestant.ask("rollout", **work)
        if reply["tokens"] != expected:
            raise DifferentWorkError(f"rollout: expected {expected} tokens of {name}, found {reply['tokens']}.")
        return float(reply["seconds"])

    return run
