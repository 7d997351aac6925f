"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Estimator = Literal["grpo", "published", "dr_grpo", "rloo"]


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
    if estimator not in get_args(Estimator):
        raise ValueError(f"algorithm.estimator: expected one of {get_args(Estimator)}, found '{estimator}'.")
    if delta < 0:
        raise ValueError(f"algorithm.advantage_delta: expected at least 0, found {delta}.")
    exact = rewards.double()
    centred = exact - exact.mean(-1, keepdim=True)
    size = rewards.shape[-1]
    if estimator == "grpo":
        advantages = centred / (centred.square().mean(-1, keepdim=True) + delta).sqrt()
    elif estimator == "published":
        advantages = centred / ((centred.square().sum(-1, keepdim=True) / max(size - 1, 1)).sqrt() + delta)
    elif estimator == "rloo":
        advantages = centred * (size / max(size - 1, 1))
    else:
        advantages = centred
    return torch.where(zero_variance(rewards)[..., None], 0.0, advantages).float()


def zero_variance(rewards: Tensor) -> Tensor:
    """Bool [...], whether all rewards [..., G] of a group are equal, so that it teaches nothing."""
    return rewards.amax(-1) == rewards.amin(-1)
