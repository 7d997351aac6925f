"""Rows, pairing and diagnosis of hand-made runs."""

from dataclasses import replace

import pytest

from src.wings.comparing.comparison import ComparisonError, ComparisonSettings, PairedDifference, Run, compare
from src.wings.comparing.statistics import Estimate

SETTINGS = ComparisonSettings(bar=0.5, window=2, resamples=500)


def run(method: str, seed: int, final: float, curve: tuple[float, ...] = (0.0, 0.5, 1.0)) -> Run:
    start = {"val/exact_match": 0.25, "val/correctness": 0.5, "val/reward": -1.0}
    end = {"val/exact_match": final, "val/correctness": final / 2, "val/reward": 2.0}
    steps = [{"reward/exact_match": value, "reward/correctness": 1 - value} for value in curve]
    return Run(method, seed, f"{method}-{seed}", {}, start, end, steps)


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
        replace(run("grpo", seed, 0.5), steps=[{"reward/exact_match": 0.0, **values} for values in of_seed])
        for seed, of_seed in enumerate(steps)
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
            [replace(run("grpo", 1, 0.5), steps=[{"reward/total": 1.0}] * 2)],
            r"grpo-1: expected 'reward/exact_match' at rollout step 0, found \['reward/total'\]",
        ),
        (
            [replace(run("grpo", 1, 0.5), final={"val/format": 1.0})],
            r"grpo-1: expected 'val/exact_match' in its final validation, found \['val/format'\]",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused(runs: list[Run], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        compare(runs, SETTINGS)
