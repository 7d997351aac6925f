"""(d) The head alone: memory and time against the form that has the logits of all tokens at once."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result, ratios, take_turns
from tests.benchmarks.sections.update import check_same_update, timed

TIME_BAR = 1.15
MEMORY_BAR = 1 / 8
_SHAPE = {"tokens": 2048, "vocabulary": 150_000, "hidden": 576}
_QUICK = {"tokens": 512, "vocabulary": 50_000, "hidden": 576}


def measure(bench: Bench) -> Iterator[Result]:
    shape = _QUICK if bench.quick else _SHAPE
    case = f"{shape['tokens']} tokens × {shape['vocabulary']} vocabulary, hidden size {shape['hidden']}"
    with bench.start("head", {"form": "ours", **shape}) as ours, bench.start("head", {"form": "full", **shape}) as full:
        check_same_update(ours, full)
        seconds = take_turns({"ours": timed(ours), "full": timed(full)}, bench.repeats)
        peaks = {name: float(one.ask("memory")["bytes"]) for name, one in (("ours", ours), ("full", full))}
    value, low, high = ratios(seconds["ours"], seconds["full"])
    details = {f"{name} s": statistics.median(taken) for name, taken in seconds.items()}
    yield Result(
        "head", "-", case, "time, of the full logits'", value, low, high, bar=TIME_BAR, at_most=True, details=details
    )
    details = {f"{name} MiB": peak / 2**20 for name, peak in peaks.items()}
    value = peaks["ours"] / peaks["full"]
    bar = None if bench.quick else MEMORY_BAR  # the weight's gradient, which both have, is most of a small head's peak
    yield Result("head", "-", case, "peak memory, of the full logits'", value, bar=bar, at_most=True, details=details)
