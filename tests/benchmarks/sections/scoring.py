"""(e) Regions, token weights and reward of a response, and what share of a whole step they are."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result

BAR_MS = 0.1
BAR_SHARE = 0.01


def measure(bench: Bench) -> Iterator[Result]:
    yield from ()
