"""Means over seeds, curves and bootstrap intervals, by hand."""

import pytest

from src.wings.comparing.statistics import Estimate, bootstrap_interval, estimate, steps_to_reach, trailing_mean


def test_mean_and_standard_error() -> None:
    # squared deviations 4 + 0 + 4 = 8, variance 8 / 2 = 4, error sqrt(4 / 3)
    assert estimate([0.0, 2.0, 4.0]) == Estimate(2.0, pytest.approx((4 / 3) ** 0.5, rel=1e-15), 3)
    assert estimate([0.3]) == Estimate(0.3, None, 1)


def test_steps_to_reach_count_rollout_steps_done() -> None:
    curve = [0.9, 0.0, 0.6, 0.9, 0.9, 0.3]
    assert trailing_mean(curve, 3) == pytest.approx([0.5, 0.5, 0.8, 0.7])
    # one good step is not enough: the mean of steps 3 to 5 is the first at 0.7
    assert steps_to_reach(curve, bar=0.7, window=3) == 5
    assert steps_to_reach(curve, bar=0.7, window=1) == 1
    assert steps_to_reach(curve, bar=0.85, window=3) is None
    assert steps_to_reach(curve, bar=0.5, window=7) is None
    assert steps_to_reach([0.5, 0.5], bar=0.5, window=2) == 2  # at the bar is there


def test_bootstrap_interval_of_a_constant_difference_is_that_difference() -> None:
    assert bootstrap_interval([0.125] * 5, resamples=1000, seed=3) == (0.125, 0.125)
    assert bootstrap_interval([0.125], resamples=1000, seed=3) is None


def test_bootstrap_interval_of_two_seeds() -> None:
    # resamples of (0, 1) have means 0, 1/2 and 1 with probability 1/4, 1/2, 1/4: both ends are beyond 2.5 %
    assert bootstrap_interval([0.0, 1.0], resamples=10_000, seed=0) == (0.0, 1.0)


def test_bootstrap_interval_is_seeded_and_approximates_the_normal_one() -> None:
    values = [float(value) for value in range(100)]
    low, high = bootstrap_interval(values, resamples=10_000, seed=1) or (0.0, 0.0)
    # mean 49.5, deviation sqrt((100^2 - 1) / 12) = 28.866, so 49.5 ± 1.96 · 28.866 / 10
    assert (low, high) == (pytest.approx(49.5 - 5.658, abs=0.25), pytest.approx(49.5 + 5.658, abs=0.25))
    assert bootstrap_interval(values, resamples=10_000, seed=1) == (low, high)
    assert bootstrap_interval(values, resamples=10_000, seed=2) != (low, high)
