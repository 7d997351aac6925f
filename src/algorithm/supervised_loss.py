"""The loss of supervised fine-tuning, with a weight for each target token."""

from __future__ import annotations

import torch
from torch import Tensor

from src.algorithm.loss_metrics import LossMetrics


class SupervisedLoss:
    """Weighted mean negative log-likelihood: -Σ_t w_t log p_t / Σ w.

    The divisor is that of the whole minibatch, so the losses of its rows, on whichever rank and however packed, sum to
    the loss of the minibatch. All weights 1 is SFT; up-weighted tool-call tokens are the paper's TSFT, up-weighted
    reasoning its RSFT, which up-weight the loss of a part as Huerta-Enochian & Ko (2024) weigh the prompt's.

    Example, log p = [-1, -2] with weights [3, 1] of 4 in all: (3 + 2) / 4 = 1.25.

    >>> import torch
    >>> loss = SupervisedLoss(torch.tensor([3.0, 1.0]), 4.0)
    >>> loss(torch.tensor([-1.0, -2.0]), torch.zeros(2)).item()
    1.25

    Args:
        weights: float [N], at least 0.
        weight_total: the minibatch's sum of weights; 0 gives a loss of 0.
    """

    whole = False

    def __init__(self, weights: Tensor, weight_total: float) -> None:
        self._weights = weights / (weight_total or 1.0)

    def __call__(self, logprobs: Tensor, entropies: Tensor, part: slice = slice(None)) -> Tensor:
        """What some of the tokens add to the loss, a scalar with gradient; see `terms` for the arguments."""
        return self.terms(logprobs, entropies, part).sum()

    def terms(self, logprobs: Tensor, entropies: Tensor, part: slice = slice(None)) -> Tensor:
        """What each of some tokens adds to the loss, float [n] with gradient.

        Args:
            logprobs: float [n], of the target tokens.
            entropies: not used.
            part: which of the row's tokens they are.
        """
        return -(logprobs * self._weights[part])

    @torch.no_grad()
    def metrics(self, logprobs: Tensor, entropies: Tensor) -> LossMetrics:
        """Sums of entropies [N] and of -log p [N], nats, over the row's N tokens."""
        count = torch.tensor(float(len(logprobs)), dtype=torch.float64, device=logprobs.device)
        return LossMetrics({"entropy": entropies.double().sum(), "nll": -logprobs.double().sum(), "tokens": count})
