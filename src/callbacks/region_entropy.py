"""Entropy, token share and gradient-weight share of each region."""

from __future__ import annotations

import torch
from lightning import Trainer
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import sum_by_region
from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training


class RegionEntropy(RolloutCallback):
    """Logs what each region is like, over all ranks and before the update.

    - `entropy/<region>`: mean entropy in nats of the policy at its tokens, never scaled by weights; over the tokens
      whose entropy is known (`RolloutStep.entropies`);
    - `token_share/<region>`: its share of the sampled tokens;
    - `token_weight/<region>`: mean weight of its tokens, normalised (Eq. 18), where `curriculum/<region>` is not;
    - `gradient_share/<region>`: its share of sum |A_i| w_t / T_i, the size of what tokens contribute to Eq. 19.
    """

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Add the four to the step's metrics."""
        step.metrics |= region_metrics(step_region_sums(module, step))


def step_region_sums(module: Training, step: RolloutStep) -> Tensor:
    """`region_sums` of a whole rollout step over all ranks, float64 [5, 6]."""
    local = torch.stack([region_sums(g, h) for g, h in zip(step.groups, step.entropies, strict=True)]).sum(dim=0)
    return module.ranks.sum(local.to(module.device)).cpu()


def region_sums(group: PromptGroup, entropies: Tensor) -> Tensor:
    """Sums by region, float64 [5, 6]: entropy, tokens with one, |A_i| w_t / T_i, w_t, tokens.

    Args:
        group: with weights.
        entropies: [N], nats; NaN where there is none.
    """
    known = ~entropies.isnan()
    share = group.token_advantages.abs() * group.weights / group.lengths[group.sequence_ids]
    columns = (entropies.where(known, 0.0), known, share, group.weights, torch.ones_like(entropies))
    return torch.stack([sum_by_region(column, group.regions) for column in columns]).cpu()


def region_metrics(sums: Tensor) -> dict[str, float]:
    """Metrics from `region_sums`, float64 [5, 6], added up; a region without tokens has no means, and shares of 0."""
    metrics = {}
    totals = sums.sum(dim=1)
    for region in Region:
        entropy, known, gradient, weight, tokens = (float(value) for value in sums[:, region])
        if known:
            metrics[f"entropy/{region.label}"] = entropy / known
        if tokens:
            metrics[f"token_weight/{region.label}"] = weight / tokens
        metrics[f"token_share/{region.label}"] = tokens / max(float(totals[4]), 1.0)
        metrics[f"gradient_share/{region.label}"] = gradient / float(totals[2]) if totals[2] else 0.0
    return metrics
