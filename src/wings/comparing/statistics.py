"""Means over seeds, learning curves and bootstrap intervals. Pure functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over `count` seeds and its standard error, which a single seed does not have."""

    mean: float
    error: float | None
    count: int


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
