"""Ranges of the two scores over training."""

from __future__ import annotations

import pytest

from src.rewards.scaling import RewardRamps, RewardRanges, ScoreRange, constant, eq14, scheduled

BASE = RewardRanges(ScoreRange(0.0, 1.0), ScoreRange(-3.0, 3.0))


@pytest.mark.parametrize(
    ("step", "format_range", "correctness_range"),
    [
        (0, (-2.0, 2.0), (-2.0, 2.0)),
        # -2 + 2 * 15/150 = -1.8, 2 - 15/150 = 1.9; -2 - 15/150 = -2.1, 2 + 15/150 = 2.1
        (15, (-1.8, 1.9), (-2.1, 2.1)),
        (75, (-1.0, 1.5), (-2.5, 2.5)),
        (150, (-1.0, 1.0), (-3.0, 3.0)),
        (300, (-1.0, 1.0), (-3.0, 3.0)),
    ],
)
def test_scheduled(step: int, format_range: tuple[float, float], correctness_range: tuple[float, float]) -> None:
    ranges = scheduled(RewardRamps(), step)
    assert (ranges.format.low, ranges.format.high) == pytest.approx(format_range, abs=1e-15)
    assert (ranges.correctness.low, ranges.correctness.high) == pytest.approx(correctness_range, abs=1e-15)


def test_ramps_from_config() -> None:
    ramps = RewardRamps.from_config({"format_high": [1, 0, 10]})
    assert scheduled(ramps, 5).format == ScoreRange(pytest.approx(-2 + 5 / 75), 0.5)
    with pytest.raises(ValueError, match=r"reward\.ramps: expected keys among .* found 'format'"):
        RewardRamps.from_config({"format": [0, 1, 2]})
    with pytest.raises(ValueError, match=r"reward\.ramps\.format_low: expected \[start, end, steps >= 1\]"):
        RewardRamps.from_config({"format_low": [0, 1, 0]})


def test_constant_and_eq14() -> None:
    assert constant(BASE) == BASE
    assert eq14(BASE, 0.0) == BASE
    assert eq14(BASE, 0.25) == RewardRanges(ScoreRange(0.0, 0.75), ScoreRange(-2.25, 2.25))
    assert BASE.weighted(beta_format=2.0, beta_accuracy=0.5) == RewardRanges(
        ScoreRange(0.0, 2.0), ScoreRange(-1.5, 1.5)
    )


def test_a_score_maps_onto_its_range_to_the_ends() -> None:
    odd = ScoreRange(-2.1, 2.3000000000000003)
    assert (odd.at(0.0), odd.at(1.0)) == (odd.low, odd.high)
    assert ScoreRange(-3.0, 3.0).at(0.75) == 1.5


def test_eq14_leaves_the_advantage_as_it_was() -> None:
    """Eq. 15 divides by the group's deviation, so a common factor cancels as δ goes to 0."""
    scores = [(1.0, 0.75), (1.0, 0.25), (0.0, 0.0), (1.0, 1.0)]

    def advantages(ranges: RewardRanges, delta: float) -> list[float]:
        rewards = [ranges.format.at(f) + ranges.correctness.at(c) for f, c in scores]
        mean = sum(rewards) / 4
        deviation = (sum((r - mean) ** 2 for r in rewards) / 4 + delta) ** 0.5
        return [(r - mean) / deviation for r in rewards]

    late, early = eq14(BASE, 0.9), eq14(BASE, 0.0)
    assert advantages(late, 1e-12) == pytest.approx(advantages(early, 1e-12), rel=1e-9)
    assert advantages(late, 1.0) != pytest.approx(advantages(early, 1.0), rel=1e-2)
