"""What a loss of packed rows is, and its metrics, which can be merged over rows and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Metrics as sums and maxima, so that rows and ranks can be merged before anything is divided.

    Attributes:
        sums: float64 scalars; `tokens` is the count of the others.
        maxima: float32 scalars.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossMetrics) -> LossMetrics:
        """Both together; a key that only one has is kept."""
        sums = {**self.sums, **other.sums}
        sums.update({key: self.sums[key] + other.sums[key] for key in self.sums.keys() & other.sums.keys()})
        maxima = {**self.maxima, **other.maxima}
        for key in self.maxima.keys() & other.maxima.keys():
            maxima[key] = torch.maximum(self.maxima[key], other.maxima[key])
        return LossMetrics(sums, maxima)

    def means(self) -> dict[str, float]:
        """Numbers to log: means over tokens, and the maxima; NaN without a token."""
        tokens = float(self.sums["tokens"])
        means = {key: float(value) / (tokens or 1.0) for key, value in self.sums.items() if key != "tokens"}
        means |= {key: float(value) for key, value in self.maxima.items()}
        return means if tokens else dict.fromkeys(means, math.nan)


class RowLoss(Protocol):
    """A row's share of its minibatch's loss, as a sum over the row's N tokens.

    Attributes:
        whole: whether it is to be asked about all of them at once.
    """

    whole: bool

    def __call__(self, logprobs: Tensor, entropies: Tensor, part: slice) -> Tensor:
        """What the tokens `part` add, from their log-probabilities [n] and entropies [n]: a scalar with gradient."""

    def terms(self, logprobs: Tensor, entropies: Tensor, part: slice = slice(None)) -> Tensor:
        """The same for each of these tokens, [n]."""

    def metrics(self, logprobs: Tensor, entropies: Tensor) -> LossMetrics:
        """Over all of the row's tokens, [N] each."""
