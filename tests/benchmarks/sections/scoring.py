"""(e) Regions, token weights and reward of a response, and what share of a whole step they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from src.models.loading.loading import PolicyConfig, load_tokenizer
from tests.benchmarks import scoring
from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result
from tests.benchmarks.sections.step import Steps

BAR = 0.1
"""Milliseconds a response."""
BAR_SHARE = 0.01
"""Of a step."""
_TOKENS = 400


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        tokenizer = load_tokenizer(PolicyConfig(path=Path(bench.model(setting))))
        found = scoring.measure(tokenizer, bench.data, tokens=_TOKENS, repeats=_rounds(bench))
        yield Result(
            "scoring",
            setting.name,
            f"a response of {_TOKENS} tokens",
            "decode, parse, regions, reward and weights",
            found["scoring"] / 1000,
            unit=" ms",
            bar=BAR,
            at_most=True,
            details={f"{part} µs": found[part] for part in scoring.PARTS},
        )
        responses = setting.prompts * setting.completions
        as_sampled = scoring.measure(tokenizer, bench.data, tokens=setting.new_tokens, repeats=_rounds(bench))
        with bench.start("step", bench.step_job(setting)) as ours:
            step = Steps("ours", ours, setting)
            seconds = sorted(step(index) for index in range(4))[1]
        yield Result(
            "scoring",
            setting.name,
            setting.case,
            "share of a whole step",
            as_sampled["scoring"] * 1e-6 * responses / seconds,
            bar=BAR_SHARE,
            at_most=True,
            details={"µs a response": as_sampled["scoring"], "responses": float(responses), "step s": seconds},
        )


def _rounds(bench: Bench) -> int:
    return 5 if bench.quick else 21
