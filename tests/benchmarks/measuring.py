"""Turns, ratios, and what a section hands back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        section: of the benchmarks.
        setting: whose model was measured.
        case: shape, or what else was varied.
        quantity: what the number is.
        value: a median where there are repeats.
        low: least of the repeats.
        high: greatest of them.
        unit: of the three; empty for ratios.
        bar: what is to be reached; None: there is none.
        at_most: whether it is a bar from above.
        details: further numbers, such as the seconds behind a ratio.
    """

    section: str
    setting: str
    case: str
    quantity: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    bar: float | None = None
    at_most: bool = False
    details: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def __str__(self) -> str:
        text = f"{self.section} | {self.setting} | {self.case} | {self.quantity}: {self.value:.4g}{self.unit}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        if self.bar is not None:
            text += f" (bar {'≤' if self.at_most else '≥'} {self.bar:.3g}: {'met' if self.met else 'NOT MET'})"
        return "  ".join([text, ", ".join(f"{key} {value:.4g}" for key, value in self.details.items())])


def take_turns(runs: Mapping[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, A B C A B C …, so that a machine that drifts drifts for all; an uncounted round first.

    Args:
        runs: name -> what does round i and returns its seconds.
        repeats: counted rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(repeats + 1):
        for name, run in runs.items():
            taken = run(index)
            if index:
                seconds[name].append(taken)
    return seconds


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of over / under, round by round.

    >>> ratios([4.0, 9.0, 6.0], [2.0, 3.0, 4.0])
    (2.0, 1.5, 3.0)
    """
    pairs = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def times_as_fast(
    section: str, setting: str, case: str, seconds: Mapping[str, Sequence[float]], bars: Mapping[str, float | None]
) -> list[Result]:
    """How many times as fast `ours` is as each other contestant.

    Args:
        section: see `Result`.
        setting: see `Result`.
        case: see `Result`.
        seconds: of all, round by round; `ours` among them.
        bars: other contestant -> bar.
    """
    results = []
    for other, bar in bars.items():
        if other in seconds:
            value, low, high = ratios(seconds[other], seconds["ours"])
            details = {f"{name} s": statistics.median(seconds[name]) for name in ("ours", other)}
            results.append(
                Result(section, setting, case, f"times as fast as {other}", value, low, high, bar=bar, details=details)
            )
    return results
