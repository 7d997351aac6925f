"""Rows, pairing and diagnosis of hand-made runs; means over seeds, curves and bootstrap intervals, by hand."""

from dataclasses import replace

import pytest

from src.wings.comparing.comparison import (
    ComparisonSettings,
    Estimate,
    PairedDifference,
    bootstrap_interval,
    compare,
    estimate,
    steps_to_reach,
    trailing_mean,
)
from src.wings.comparing.run_folders import ComparisonError, RunRecord
from src.wings.comparing.tables import render_comparison

SETTINGS = ComparisonSettings(bar=0.5, window=2, resamples=500)


def run(method: str, seed: int, final: float, curve: tuple[float, ...] = (0.0, 0.5, 1.0)) -> RunRecord:
    start = {"val/exact_match": 0.25, "val/correctness": 0.5, "val/reward": -1.0}
    end = {"val/exact_match": final, "val/correctness": final / 2, "val/reward": 2.0}
    steps = [{"reward/exact_match": value, "reward/correctness": 1 - value} for value in curve]
    return RunRecord(f"{method}-{seed}", method, seed, dict(enumerate(steps)), {0: start, len(curve): end})


def test_a_row_holds_means_over_seeds() -> None:
    (row,) = compare([run("grpo", 2, 0.75), run("grpo", 1, 0.25, (0.0, 0.25, 0.5))], SETTINGS)

    assert (row.method, row.seeds, row.differences) == ("grpo", (1, 2), {})
    # (0.25, 0.75): variance 2 · 0.0625 = 0.125, error sqrt(0.125 / 2) = 0.25
    assert row.final["val/exact_match"] == Estimate(0.5, 0.25, 2)
    assert row.start["val/correctness"] == Estimate(0.5, 0.0, 2)
    assert row.final["val/reward"].mean == 2.0
    # trailing means (0.25, 0.75), at 0.5 after three steps, and (0.125, 0.375), never
    assert row.steps_to_bar == Estimate(3.0, None, 1)
    assert row.area == Estimate(0.375, 0.125, 2)  # 0.5 and 0.25


def test_the_training_metric_is_a_choice_among_scale_free_ones() -> None:
    (row,) = compare([run("grpo", 1, 0.5)], replace(SETTINGS, training_metric="reward/correctness"))
    assert row.steps_to_bar == Estimate(2.0, None, 1)  # 1.0, 0.5, 0.0
    with pytest.raises(ValueError, match=r"comparison\.training_metric: expected one of .* found 'reward/total'"):
        ComparisonSettings(training_metric="reward/total")


def test_no_seed_at_the_bar() -> None:
    (row,) = compare([run("grpo", 1, 0.5)], replace(SETTINGS, bar=0.9))
    assert row.steps_to_bar is None


def test_differences_are_paired_by_seed() -> None:
    runs = [run("grpo", seed, final) for seed, final in ((1, 0.125), (2, 0.5), (3, 0.75))]
    runs += [run("rest", seed, final) for seed, final in ((2, 0.75), (3, 1.0), (9, 0.0))]
    baseline, row = compare(runs, SETTINGS)

    assert (baseline.method, row.method, row.seeds) == ("grpo", "rest", (2, 3, 9))
    # seed 9 has no partner; both others gained 0.25, whatever the seed did to them
    assert row.differences["val/exact_match"] == PairedDifference(0.25, (0.25, 0.25), {2: 0.25, 3: 0.25})
    assert row.differences["val/correctness"].mean == 0.125
    assert row.differences["area"] == PairedDifference(0.0, (0.0, 0.0), {2: 0.0, 3: 0.0})
    assert set(row.differences) == {"val/exact_match", "val/correctness", "area"}  # rewards are not compared


def test_episodes_are_compared_without_correctness() -> None:
    runs = [run("grpo", 1, 0.25), run("rest", 1, 0.5)]
    for record in runs:
        for values in record.validations.values():
            del values["val/correctness"]
    baseline, row = compare(runs, SETTINGS)
    assert baseline.final.keys() == {"val/exact_match", "val/reward"}
    assert row.differences.keys() == {"val/exact_match", "area"}
    further = render_comparison([baseline, row], runs, SETTINGS).partition("## Correctness and reward")[2]
    assert [cell.strip() for cell in further.splitlines()[5].split("|")[1:7]] == [
        "rest",
        "–",
        "–",
        "–",
        "-1.000",
        "2.000",
    ]


def test_one_pair_has_no_interval() -> None:
    _, row = compare([run("grpo", 1, 0.25), run("rest", 1, 0.5)], SETTINGS)
    assert row.differences["val/exact_match"] == PairedDifference(0.25, None, {1: 0.25})


def test_the_baseline_is_first_and_the_others_follow_by_name() -> None:
    runs = [run(method, 1, 0.5) for method in ("rest", "dr_grpo", "grpo")]
    assert [row.method for row in compare(runs, SETTINGS)] == ["grpo", "dr_grpo", "rest"]
    assert [row.method for row in compare(runs, replace(SETTINGS, baseline="rest"))] == ["rest", "dr_grpo", "grpo"]


def test_diagnosis_is_the_mean_over_steps_and_seeds() -> None:
    steps = (
        ({"gradient_share/format": 0.5, "entropy/other": 2.0}, {"gradient_share/format": 0.25}),
        ({"gradient_share/format": 0.625, "train/loss": 1.0}, {"gradient_share/format": 0.125}),
    )
    runs = [
        replace(run("grpo", seed, 0.5, (0.0, 0.0)), steps={i: {"reward/exact_match": 0.0, **values[i]} for i in (0, 1)})
        for seed, values in enumerate(steps)
    ]
    (row,) = compare(runs, SETTINGS)
    # format: (0.375 + 0.375) / 2; other has tokens in one step of one seed only
    assert row.diagnosis == {"gradient_share/format": 0.375, "entropy/other": 2.0}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([run("rest", 1, 0.5)], r"comparison\.baseline=grpo: expected one of the methods that ran, \['rest'\]"),
        ([run("grpo", 1, 0.5), run("grpo", 1, 0.75)], r"two runs of grpo with seed 1: grpo-1 and grpo-1"),
        ([run("grpo", 1, 0.5), run("rest", 2, 0.5)], r"rest: no seed in common with grpo: \[2\] and \[1\]"),
        ([run("grpo", 1, 0.5, (1.0,))], r"comparison\.window=2: expected at most the 1 steps of grpo-1"),
        (
            [replace(run("grpo", 1, 0.5), steps={0: {"reward/total": 1.0}, 1: {}})],
            r"grpo-1: expected 'reward/exact_match' at rollout step 0, found \['reward/total'\]",
        ),
        (
            [replace(run("grpo", 1, 0.5), validations={3: {"val/format": 1.0}})],
            r"grpo-1: expected 'val/exact_match' in its final validation, found \['val/format'\]",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused(runs: list[RunRecord], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        compare(runs, SETTINGS)


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
