"""Advantages worked out by hand, and Eq. 14's common factor."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from src.algorithm.advantages import Estimator, group_advantages, turn_advantages, zero_variance


def test_grpo_by_hand() -> None:
    # Mean 2, deviations -2 0 1 1, population variance (4 + 0 + 1 + 1) / 4 = 1.5; delta 0.5 makes the root sqrt(2).
    found = group_advantages(torch.tensor([0.0, 2.0, 3.0, 3.0]), delta=0.5)
    assert found.tolist() == pytest.approx([-math.sqrt(2), 0.0, 1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-6)


def test_published_by_hand() -> None:
    # The same deviations, sample variance 6 / 3 = 2; delta 0.5 outside the root makes the divisor sqrt(2) + 0.5.
    found = group_advantages(torch.tensor([0.0, 2.0, 3.0, 3.0]), estimator="published", delta=0.5)
    size = math.sqrt(2) + 0.5
    assert found.tolist() == pytest.approx([-2 / size, 0.0, 1 / size, 1 / size], abs=1e-6)


def test_dr_grpo_and_rloo_by_hand() -> None:
    rewards = torch.tensor([0.0, 2.0, 3.0, 3.0])
    assert group_advantages(rewards, estimator="dr_grpo").tolist() == [-2.0, 0.0, 1.0, 1.0]
    # The others' means are 8/3, 2, 5/3 and 5/3.
    expected = [-8 / 3, 0.0, 4 / 3, 4 / 3]
    assert group_advantages(rewards, estimator="rloo").tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("estimator", ["grpo", "published", "dr_grpo", "rloo"])
def test_equal_rewards_teach_nothing(estimator: str) -> None:
    # 0.1 is no binary fraction, so a mean of many is not exactly 0.1; delta 0 would turn the rest into ±1.
    rewards = torch.full((7,), 0.1)
    assert group_advantages(rewards, estimator=estimator, delta=0.0).tolist() == [0.0] * 7
    assert group_advantages(torch.tensor([5.0]), estimator=estimator, delta=0.0).tolist() == [0.0]
    assert zero_variance(rewards) and not zero_variance(torch.tensor([0.1, 0.1, 0.2]))


def test_several_groups_at_once() -> None:
    rewards = torch.tensor([[0.0, 2.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    rows = [group_advantages(row) for row in rewards]
    torch.testing.assert_close(group_advantages(rewards), torch.stack(rows), atol=0, rtol=0)


def test_common_factor_of_eq_14_cancels_as_delta_goes_to_zero() -> None:
    # (1 - nu) R has advantage (R - mean) / sqrt(var + delta / (1 - nu)^2): the factor acts through delta alone.
    rewards, nu = torch.tensor([0.3, 1.7, 2.0, 0.9], dtype=torch.float64), 0.9
    gaps = [
        (group_advantages((1 - nu) * rewards, delta=delta) - group_advantages(rewards, delta=delta)).abs().max().item()
        for delta in (1e-2, 1e-4, 1e-6, 1e-8)
    ]
    assert gaps[0] > 0.5 and all(later < earlier / 20 for earlier, later in pairwise(gaps))
    assert gaps[-1] < 2e-6
    equal = group_advantages((1 - nu) * rewards, delta=1e-2)
    torch.testing.assert_close(equal, group_advantages(rewards, delta=1e-2 / (1 - nu) ** 2), atol=1e-6, rtol=0)


def test_refuses_unknown_settings() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.estimator: expected one of .*found 'gae'"):
        group_advantages(torch.zeros(2), estimator="gae")
    with pytest.raises(ValueError, match=r"algorithm\.advantage_delta: expected at least 0"):
        group_advantages(torch.zeros(2), delta=-1.0)


def test_turns_of_one_answer_are_the_groups_advantages() -> None:
    rewards = torch.tensor([3.0, 1.0, -0.5, 3.0])
    for estimator in get_args(Estimator):
        expected = group_advantages(rewards, estimator=estimator)
        torch.testing.assert_close(turn_advantages(rewards[:, None], estimator=estimator)[:, 0], expected)


def test_turn_advantages_of_a_worked_example() -> None:
    # Rewards to go [2, 1], [1, 0], [0, 0]: means 1 and 1/3. Whole rewards 2, 1, 0: variance 2/3.
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = turn_advantages(rewards, estimator="dr_grpo")
    torch.testing.assert_close(found, torch.tensor([[1.0, 2 / 3], [0.0, -1 / 3], [-1.0, -1 / 3]]))
    torch.testing.assert_close(turn_advantages(rewards, estimator="rloo"), found * 1.5)
    torch.testing.assert_close(turn_advantages(rewards, delta=0.0), found * 1.5**0.5)
    torch.testing.assert_close(turn_advantages(rewards, estimator="published", delta=0.0), found)
    assert not turn_advantages(torch.tensor([[1.0, 2.0], [1.0, 2.0]])).any()


def test_episodes_that_earn_the_same_at_different_turns_have_bounded_advantages() -> None:
    # To go [1, 0] and [1, 1]: no variance at the first turn, 1/4 at the second, so deviations of 1/2 are 1. Divided by
    # the first turn's, sqrt(delta) = 1e-3 would be left: 500.
    found = turn_advantages(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), delta=1e-6)
    assert found.flatten().tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0], abs=1e-5)
