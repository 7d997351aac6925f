"""Methods compared over seeds: finished runs in, one row a method out. Pure statistics: no files, no figures.

What is compared is scale-free: exact match and correctness, both in [0, 1]. Rewards are not, as a reward schedule moves
their scale with the rollout step, and not every method has the same one; they are reported, never compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from src.errors import check_fields
from src.wings.comparing.statistics import Estimate, bootstrap_interval, estimate, steps_to_reach

COMPARED = ("val/exact_match", "val/correctness")
"""Validation metrics that differences are taken of."""
REPORTED = (*COMPARED, "val/reward")
"""Validation metrics of every row."""
TRAINING_METRICS = ("reward/exact_match", "reward/correctness")
"""Scale-free metrics of the rollouts."""
_DIAGNOSED = ("token_share/", "gradient_share/", "entropy/", "group/")


class ComparisonError(ValueError):
    """Runs that cannot be compared: names them, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished training.

    Attributes:
        method: its name (`algorithm.name`).
        seed: its seed; runs of one seed are paired.
        name: what errors call it.
        settings: its config, keys joined by dots.
        start: validation before the first rollout step; empty if there was none.
        final: validation after the last.
        steps: metrics of every rollout step.
    """

    method: str
    seed: int
    name: str
    settings: Mapping[str, object]
    start: Mapping[str, float]
    final: Mapping[str, float]
    steps: Sequence[Mapping[str, float]]

    def curve(self, key: str) -> list[float]:
        """A metric by rollout step.

        Raises:
            ComparisonError: a step does not have it.
        """
        for index, step in enumerate(self.steps):
            if key not in step:
                raise ComparisonError(f"{self.name}: expected '{key}' at rollout step {index}, found {sorted(step)}.")
        return [step[key] for step in self.steps]

    def validation(self, when: str, key: str) -> float:
        """A metric of the validation at the `start` or `final`.

        Raises:
            ComparisonError: it was not measured.
        """
        values = self.start if when == "start" else self.final
        if key not in values:
            raise ComparisonError(f"{self.name}: expected '{key}' in its {when} validation, found {sorted(values)}.")
        return values[key]


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
    training_metric: str = "reward/exact_match"
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


def compare(runs: Sequence[Run], settings: ComparisonSettings) -> list[MethodRow]:
    """One row a method, the baseline first, the others by name.

    Raises:
        ComparisonError: no run of the baseline, two runs of one method and seed, a method without a seed of the
            baseline, a metric that is missing, or a window longer than a run.
    """
    by_method: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if (other := by_method[run.method].setdefault(run.seed, run)) is not run:
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
    return [_row(dict(sorted(by_method[method].items())), baseline, settings) for method in order]


def _row(runs: Mapping[int, Run], baseline: Mapping[int, Run], settings: ComparisonSettings) -> MethodRow:
    curves = [run.curve(settings.training_metric) for run in runs.values()]
    steps = [steps_to_reach(curve, settings.bar, settings.window) for curve in curves]
    reached = [float(count) for count in steps if count is not None]
    method = next(iter(runs.values())).method
    return MethodRow(
        method=method,
        seeds=tuple(runs),
        start={key: estimate([run.validation("start", key) for run in runs.values()]) for key in REPORTED}
        if all(run.start for run in runs.values())
        else {},
        final={key: estimate([run.validation("final", key) for run in runs.values()]) for key in REPORTED},
        steps_to_bar=estimate(reached) if reached else None,
        area=estimate([_area(run, settings) for run in runs.values()]),
        differences={} if method == settings.baseline else _differences(method, runs, baseline, settings),
        diagnosis=diagnose(runs.values()),
    )


def _differences(
    method: str, runs: Mapping[int, Run], baseline: Mapping[int, Run], settings: ComparisonSettings
) -> dict[str, PairedDifference]:
    common = [seed for seed in runs if seed in baseline]
    if not common:
        raise ComparisonError(
            f"{method}: no seed in common with {settings.baseline}: {sorted(runs)} and {sorted(baseline)}."
        )
    differences = {
        key: {seed: runs[seed].validation("final", key) - baseline[seed].validation("final", key) for seed in common}
        for key in COMPARED
    }
    areas = {seed: [_area(run[seed], settings) for run in (runs, baseline)] for seed in common}
    differences["area"] = {seed: ours - theirs for seed, (ours, theirs) in areas.items()}
    return {
        key: PairedDifference(
            mean=math.fsum(values.values()) / len(values),
            interval=bootstrap_interval(list(values.values()), settings.resamples, settings.seed),
            by_seed=values,
        )
        for key, values in differences.items()
    }


def _area(run: Run, settings: ComparisonSettings) -> float:
    curve = run.curve(settings.training_metric)
    return math.fsum(curve) / len(curve)


def diagnose(runs: Iterable[Run]) -> dict[str, float]:
    """Where the gradient goes: `token_share/`, `gradient_share/`, `entropy/` and `group/` metrics.

    Each is the mean over seeds of the mean over rollout steps; steps without it (no token in a region) are left out.
    """
    means: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        values: dict[str, list[float]] = defaultdict(list)
        for step in run.steps:
            for key, value in step.items():
                if key.startswith(_DIAGNOSED):
                    values[key].append(value)
        for key, found in values.items():
            means[key].append(math.fsum(found) / len(found))
    return {key: math.fsum(found) / len(found) for key, found in sorted(means.items())}
