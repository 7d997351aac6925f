"""The loss of supervised fine-tuning, with a weight for each target token."""

from __future__ import annotations

from torch import Tensor


def supervised_loss(logprobs: Tensor, weights: Tensor, weight_total: float) -> Tensor:
    """Weighted mean negative log-likelihood: -Σ_t w_t log p_t / Σ w.

    The divisor is that of the whole minibatch, so the losses of its rows, on whichever rank and however packed, sum to
    the loss of the minibatch. All weights 1 is SFT; up-weighted tool-call tokens are the paper's TSFT, up-weighted
    reasoning its RSFT, which up-weight the loss of a part as Huerta-Enochian & Ko (2024) weigh the prompt's.

    Example, log p = [-1, -2] with weights [3, 1] of 4 in all: (3 + 2) / 4 = 1.25.

    >>> import torch
    >>> supervised_loss(torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 1.0]), 4.0).item()
    1.25

    Args:
        logprobs: float [N], of the target tokens, with gradient.
        weights: float [N], at least 0.
        weight_total: the minibatch's sum of weights; 0 gives a loss of 0.

    Returns:
        A scalar.
    """
    return -(logprobs * weights).sum() / (weight_total or 1.0)
