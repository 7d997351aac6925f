"""Methods compared over seeds: finished runs in, one row a method out. Pure statistics: no files, no figures.

What is compared is scale-free: exact match and correctness, both in [0, 1]. Rewards are not, as a reward schedule moves
their scale with the rollout step, and not every method has the same one; they are reported, never compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.errors import check_fields
from src.runs.metric_names import CORRECTNESS, EXACT_MATCH, VAL_CORRECTNESS, VAL_EXACT_MATCH, VAL_REWARD
from src.wings.comparing.run_folders import ComparisonError, RunRecord

COMPARED = (VAL_EXACT_MATCH, VAL_CORRECTNESS)
"""Validation metrics that differences are taken of; correctness where all runs have it, which episodes have not."""
REPORTED = (*COMPARED, VAL_REWARD)
"""Validation metrics of every row; likewise."""
TRAINING_METRICS = (EXACT_MATCH, CORRECTNESS)
"""Scale-free metrics of the rollouts."""
_DIAGNOSED = ("token_share/", "gradient_share/", "entropy/", "group/")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over `count` seeds and its standard error, which a single seed does not have."""

    mean: float
    error: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (sample standard deviation / sqrt(n)).

    >>> estimate([1.0, 3.0])
    Estimate(mean=2.0, error=1.0, count=2)
    >>> estimate([1.0])
    Estimate(mean=1.0, error=None, count=1)
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)), len(values))


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the window - 1 before it, from the first full window on.

    >>> trailing_mean([0.0, 1.0, 2.0, 6.0], window=2)
    [0.5, 1.5, 4.0]
    """
    return [math.fsum(values[end - window : end]) / window for end in range(window, len(values) + 1)]


def steps_to_reach(values: Sequence[float], bar: float, window: int) -> int | None:
    """Rollout steps done when the trailing mean is at the bar for the first time; None if it never is.

    >>> steps_to_reach([0.0, 0.8, 0.6, 0.8, 0.1], bar=0.7, window=2)
    3
    """
    means = trailing_mean(values, window)
    return next((index + window for index, mean in enumerate(means) if mean >= bar), None)


def bootstrap_interval(differences: Sequence[float], resamples: int, seed: int) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean over seeds; None with fewer than two.

    It is too narrow with few seeds: for normal differences it covers the true mean 84 % of the time with five seeds,
    90 % with ten (simulated).

    >>> bootstrap_interval([0.25, 0.25, 0.25], resamples=100, seed=0)
    (0.25, 0.25)
    """
    if len(differences) < 2:
        return None
    chosen = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(np.asarray(differences)[chosen].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """What is measured.

    Attributes:
        baseline: method that differences are taken to.
        training_metric: one of `TRAINING_METRICS`, for the steps to a bar and the area under the curve.
        bar: value that its trailing mean has to reach.
        window: rollout steps of that mean.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    baseline: str = "grpo"
    training_metric: str = EXACT_MATCH
    bar: float = 0.75
    window: int = 3
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            "comparison",
            self,
            (
                ("training_metric", self.training_metric in TRAINING_METRICS, f"one of {list(TRAINING_METRICS)}"),
                ("bar", 0 < self.bar <= 1, "above 0, at most 1"),
                ("window", self.window >= 1, "at least 1"),
                ("resamples", self.resamples >= 1, "at least 1"),
            ),
        )


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Method minus baseline, on the seeds that both have.

    Attributes:
        mean: over those seeds.
        interval: 95 % percentile bootstrap interval of the mean; None with one seed.
        by_seed: seed -> difference.
    """

    mean: float
    interval: tuple[float, float] | None
    by_seed: Mapping[int, float]

    def __str__(self) -> str:
        told = "" if self.interval is None else f" [{self.interval[0]:+.3f}, {self.interval[1]:+.3f}]"
        return f"{self.mean:+.3f}{told}"


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], resamples: int, seed: int
) -> PairedDifference | None:
    """The difference of two methods' values by seed; None without a seed that both have.

    >>> str(paired_difference({1: 0.5, 2: 0.75}, {2: 0.5, 3: 0.5}, 100, 0))
    '+0.250'
    """
    by_seed = {key: value - theirs[key] for key, value in ours.items() if key in theirs}
    if not by_seed:
        return None
    values = list(by_seed.values())
    return PairedDifference(math.fsum(values) / len(values), bootstrap_interval(values, resamples, seed), by_seed)


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What one method achieved.

    Attributes:
        method: its name.
        seeds: those that it ran with.
        start: `REPORTED` metrics before the first rollout step; empty unless all seeds measured them.
        final: the same after the last.
        steps_to_bar: rollout steps to the bar, over the seeds that reached it; None if none did.
        area: mean of the training metric over all rollout steps.
        differences: `COMPARED` metrics and `area` against the baseline; empty for the baseline itself.
        diagnosis: mean over steps and seeds of shares and entropies by region and of the spread within groups.
    """

    method: str
    seeds: tuple[int, ...]
    start: Mapping[str, Estimate]
    final: Mapping[str, Estimate]
    steps_to_bar: Estimate | None
    area: Estimate
    differences: Mapping[str, PairedDifference]
    diagnosis: Mapping[str, float]


def compare(runs: Sequence[RunRecord], settings: ComparisonSettings) -> list[MethodRow]:
    """One row a method of these finished runs, the baseline first, the others by name.

    Raises:
        ComparisonError: no run of the baseline, two runs of one method and seed, a method without a seed of the
            baseline, a metric that is missing, or a window longer than a run.
    """
    by_method: dict[str, dict[int, RunRecord]] = defaultdict(dict)
    for run in runs:
        if (other := by_method[run.method].setdefault(run.seed or 0, run)) is not run:
            raise ComparisonError(f"two runs of {run.method} with seed {run.seed}: {other.name} and {run.name}.")
    if settings.baseline not in by_method:
        raise ComparisonError(
            f"comparison.baseline={settings.baseline}: expected one of the methods that ran, {sorted(by_method)}."
        )
    for run in runs:
        if len(run.steps) < settings.window:
            raise ComparisonError(
                f"comparison.window={settings.window}: expected at most the {len(run.steps)} steps of {run.name}. "
                "Lower it; src/compare.py reads the same folders again."
            )
    order = sorted(by_method, key=lambda method: (method != settings.baseline, method))
    baseline = by_method[settings.baseline]
    has_correctness = all(VAL_CORRECTNESS in run.validations.get(run.steps_done, {}) for run in runs)
    reported = [key for key in REPORTED if key != VAL_CORRECTNESS or has_correctness]
    return [_row(dict(sorted(by_method[method].items())), baseline, settings, reported) for method in order]


def complete_curve(run: RunRecord, key: str) -> list[float]:
    """A metric by rollout step.

    Raises:
        ComparisonError: a step does not have it.
    """
    for index, step in run.steps.items():
        if key not in step:
            raise ComparisonError(f"{run.name}: expected '{key}' at rollout step {index}, found {sorted(step)}.")
    return [step[key] for step in run.steps.values()]


def validated(run: RunRecord, when: str, key: str) -> float:
    """A metric of the validation before the first rollout step (`start`) or after the last (`final`).

    Raises:
        ComparisonError: it was not measured.
    """
    values = run.validations.get(0 if when == "start" else run.steps_done, {})
    if key not in values:
        raise ComparisonError(f"{run.name}: expected '{key}' in its {when} validation, found {sorted(values)}.")
    return values[key]


def _row(
    runs: Mapping[int, RunRecord],
    baseline: Mapping[int, RunRecord],
    settings: ComparisonSettings,
    reported: Sequence[str],
) -> MethodRow:
    curves = [complete_curve(run, settings.training_metric) for run in runs.values()]
    steps = [steps_to_reach(curve, settings.bar, settings.window) for curve in curves]
    reached = [float(count) for count in steps if count is not None]
    method = next(iter(runs.values())).method
    start = all(0 in run.validations for run in runs.values())
    measured = {
        when: {key: estimate([validated(run, when, key) for run in runs.values()]) for key in reported}
        for when in (("start", "final") if start else ("final",))
    }
    return MethodRow(
        method=method,
        seeds=tuple(runs),
        start=measured.get("start", {}),
        final=measured["final"],
        steps_to_bar=estimate(reached) if reached else None,
        area=estimate(list(_areas(runs, settings).values())),
        differences={} if method == settings.baseline else _differences(method, runs, baseline, settings, reported),
        diagnosis=diagnose(runs.values()),
    )


def _differences(
    method: str,
    runs: Mapping[int, RunRecord],
    baseline: Mapping[int, RunRecord],
    settings: ComparisonSettings,
    reported: Sequence[str],
) -> dict[str, PairedDifference]:
    def finals(of: Mapping[int, RunRecord], key: str) -> dict[int, float]:
        return {seed: validated(run, "final", key) for seed, run in of.items()}

    pairs = {key: (finals(runs, key), finals(baseline, key)) for key in COMPARED if key in reported}
    pairs["area"] = (_areas(runs, settings), _areas(baseline, settings))
    found = {key: paired_difference(*pair, settings.resamples, settings.seed) for key, pair in pairs.items()}
    if None in found.values():
        raise ComparisonError(
            f"{method}: no seed in common with {settings.baseline}: {sorted(runs)} and {sorted(baseline)}."
        )
    return {key: difference for key, difference in found.items() if difference is not None}


def _areas(runs: Mapping[int, RunRecord], settings: ComparisonSettings) -> dict[int, float]:
    curves = {seed: complete_curve(run, settings.training_metric) for seed, run in runs.items()}
    return {seed: math.fsum(curve) / len(curve) for seed, curve in curves.items()}


def diagnose(runs: Iterable[RunRecord]) -> dict[str, float]:
    """Where the gradient goes: `token_share/`, `gradient_share/`, `entropy/` and `group/` metrics.

    Each is the mean over seeds of the mean over rollout steps; steps without it (no token in a region) are left out.
    """
    means: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for key in {key for step in run.steps.values() for key in step if key.startswith(_DIAGNOSED)}:
            _, found = run.curve(key)
            means[key].append(math.fsum(found) / len(found))
    return {key: math.fsum(found) / len(found) for key, found in sorted(means.items())}
