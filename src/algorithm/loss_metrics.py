"""Metrics of the policy loss that can be merged over rows and ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from src.protocol.types import Region


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Metrics as sums and maxima, so that rows and ranks can be merged before anything is divided.

    Attributes:
        sums: float64 scalars; `tokens` and `tokens/<region>` are the counts of the others.
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
        """Numbers to log: means over tokens (entropy over its region's), shares of tokens and weight by region, maxima.

        Regions without tokens have no mean entropy and are left out of `entropy/`.
        """
        sums = {key: float(value) for key, value in self.sums.items()}
        tokens = max(sums["tokens"], 1.0)
        weight = sum(sums[f"weight/{region.label}"] for region in Region) or 1.0
        result = {key: float(value) for key, value in self.maxima.items()}
        for key, value in sums.items():
            kind, _, region = key.partition("/")
            if kind == "tokens" and region:
                result[f"token_share/{region}"] = value / tokens
            elif kind == "weight":
                result[f"weight_share/{region}"] = value / weight
            elif kind == "entropy" and region:
                if sums[f"tokens/{region}"]:
                    result[key] = value / sums[f"tokens/{region}"]
            elif kind != "tokens":
                result[key] = value / tokens
        return result
