"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Estimator = Literal["grpo", "published", "dr_grpo", "rloo"]
Credit = Literal["episode", "turn"]
"""What an answer of an episode is credited with: the whole episode's reward, or what came from it on."""


def group_advantages(rewards: Tensor, *, estimator: Estimator = "grpo", delta: float = 1e-6) -> Tensor:
    """Advantage of each completion within its group.

    - `grpo` (ResT, Eq. 15): (R - mean) / sqrt(var + delta), population variance, delta inside the root.
    - `published`: (R - mean) / (std + delta), sample deviation, delta outside the root, as in the published code.
    - `dr_grpo`: R - mean.
    - `rloo`: R minus the mean of the others, G / (G - 1) times `dr_grpo`.

    A group whose rewards are all equal has advantage exactly 0, as has a group of one.

    >>> group_advantages(torch.tensor([3.0, 1.0, 1.0, 3.0]), delta=0.0).tolist()
    [1.0, -1.0, -1.0, 1.0]

    Args:
        rewards: float [..., G], a group along the last dimension.
        estimator: see above.
        delta: >= 0, keeps a tiny variance from blowing up; `grpo` and `published` only.

    Returns:
        float32 [..., G].

    Raises:
        ValueError: an unknown estimator, or a negative delta.
    """
    exact = rewards.double()
    centred = exact - exact.mean(-1, keepdim=True)
    advantages = _scaled(centred, centred, estimator, delta)
    return torch.where(zero_variance(rewards)[..., None], 0.0, advantages).float()


def turn_advantages(rewards: Tensor, *, estimator: Estimator = "grpo", delta: float = 1e-6) -> Tensor:
    """Advantage of each turn of G episodes: reward-to-go, less the group's mean of it at that turn.

    An episode that is over has nothing to go: it counts as 0 in the means of later turns. So the mean is over G at
    every turn, and what an episode adds to it only scales its advantages by (G - 1) / G, as in `group_advantages`. A
    mean over those that are still going would divide by a number that the policy decides on when it stops, and the
    gradient would be of something else. What the estimator divides by is that of the turn where rewards-to-go differ
    most, usually the first: episodes that earn the same at different turns differ at later ones only.

    >>> turn_advantages(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), estimator="dr_grpo").tolist()
    [[1.0, 1.0], [-1.0, -1.0]]
    >>> turn_advantages(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), estimator="dr_grpo").tolist()
    [[0.0, -1.0], [0.0, 1.0]]
    >>> turn_advantages(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), delta=0.0).tolist()
    [[0.0, -1.0], [0.0, 1.0]]

    Args:
        rewards: float [G, K], of each turn, 0 behind an episode's last. With K = 1 this is `group_advantages`.
        estimator: see there.
        delta: see there.

    Returns:
        float32 [G, K].
    """
    to_go = rewards.double().flip(-1).cumsum(-1).flip(-1)
    centred = to_go - to_go.mean(0)
    widest = int(centred.square().sum(0).argmax())
    advantages = _scaled(centred, centred[:, widest], estimator, delta)
    return torch.where(to_go.amax(0) == to_go.amin(0), 0.0, advantages).float()


def _scaled(centred: Tensor, whole: Tensor, estimator: Estimator, delta: float) -> Tensor:
    """Centred values [..., G] or [G, K], divided as the estimator divides the centred rewards `whole` [..., G]."""
    if estimator not in get_args(Estimator):
        raise ValueError(f"algorithm.estimator: expected one of {get_args(Estimator)}, found '{estimator}'.")
    if delta < 0:
        raise ValueError(f"algorithm.advantage_delta: expected at least 0, found {delta}.")
    size = whole.shape[-1]
    if estimator == "grpo":
        return centred / (whole.square().mean(-1, keepdim=True) + delta).sqrt()
    if estimator == "published":
        return centred / ((whole.square().sum(-1, keepdim=True) / max(size - 1, 1)).sqrt() + delta)
    if estimator == "rloo":
        return centred * (size / max(size - 1, 1))
    return centred


def zero_variance(rewards: Tensor) -> Tensor:
    """Bool [...], whether all rewards [..., G] of a group are equal, so that it teaches nothing."""
    return rewards.amax(-1) == rewards.amin(-1)
