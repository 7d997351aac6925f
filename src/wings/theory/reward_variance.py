"""How much of the reward a part of the completion decides: the law of total variance on branched samples. Pure."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RewardVariance(NamedTuple):
    """The variance of the rewards of one prompt, in two parts.

    Attributes:
        between: variance of E[R | beginning] over the beginnings: decided by the time they end. Unbiased, so it can be
            a little below 0 where they decide nothing.
        within: mean over the beginnings of Var[R | beginning]: decided after them.
    """

    between: float
    within: float


def reward_variance(rewards: Tensor) -> RewardVariance:
    """Var R = Var E[R | beginning] + E Var[R | beginning], each estimated without bias.

    Two beginnings with continuations that earn (1, 1) and (0, 0): all is decided, within 0, between (1 - 0)² / 2 = 0.5.
    With (1, 0) and (0, 1) the means are equal; within is 0.5, and between 0 - 0.5 / 2 = -0.25, an estimate of 0.

    >>> import torch
    >>> reward_variance(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    RewardVariance(between=0.5, within=0.0)

    Args:
        rewards: float [B, C], C continuations of each of B beginnings.

    Raises:
        ValueError: fewer than two beginnings or continuations.
    """
    beginnings, continuations = rewards.shape
    if beginnings < 2 or continuations < 2:
        raise ValueError(
            f"reward_variance: expected at least 2 beginnings with 2 continuations each, found {beginnings} and "
            f"{continuations}."
        )
    exact = rewards.double()
    within = float(exact.var(dim=1).mean())
    return RewardVariance(float(exact.mean(dim=1).var()) - within / continuations, within)
