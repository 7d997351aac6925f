"""Moves the region weights through training (Eq. 16-17) and sets their start (Eq. 9, or Eq. 7 measured)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from src.algorithm.region_weights import RegionFactors, region_means, sum_by_region, variance_factors
from src.callbacks.region_entropy import step_region_sums
from src.errors import ConfigError
from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training

log = logging.getLogger(__name__)


class Curriculum(RolloutCallback):
    """Returns the weight of each region for each rollout step's update.

    The schedule is the algorithm's `weighting`. An Eq. 9 initialiser is measured on the rollouts of the first
    `measure_steps` steps: until then the factors follow the entropies seen so far, after that they start from the
    whole measurement, which is kept in checkpoints.

    The initialiser `measured_variance` is measured at every rollout step and never done: second moments and tokens of
    each region are summed over steps, those of the past `smoothing` times less at each step, and the factors follow
    (`variance_factors`). The first step counts in full, and a step with few tokens of a region changes it little. What
    was measured is logged as `curriculum/beta/<region>`.

    Args:
        measure_steps: rollout steps to measure entropies on.
    """

    def __init__(self, measure_steps: int = 1) -> None:
        if measure_steps < 1:
            raise ConfigError(f"callbacks.curriculum.measure_steps: expected at least 1, found {measure_steps}.")
        self._measure_steps = measure_steps
        self._sums = torch.zeros(2, len(Region), dtype=torch.float64)  # entropy, tokens
        self._moments = torch.zeros(2, len(Region), dtype=torch.float64)  # second moment, tokens; both smoothed
        self._initial: RegionFactors | None = None

    def needs_scores(self, module: Training) -> bool:
        """While the start of the factors is measured."""
        return self._initial is None and module.objective.weighting.initialiser != "fixed"

    def region_factors(self, module: Training, step: RolloutStep) -> RegionFactors:
        """This step's factors, which are logged."""
        weighting = module.objective.weighting
        initial = self._initial
        if weighting.needs_moments:
            initial = variance_factors(weighting, self._smooth(module, step))
        elif initial is None:
            entropies = None if weighting.initialiser == "fixed" else self._measure(module, step)
            initial = weighting.initial_factors(entropies)
            if entropies is None or step.index + 1 >= self._measure_steps:
                self._initial = initial
                log.info("Initial region factors: %s", initial)
        factors = weighting.factors_at(initial, float(step.index) if weighting.progress == "step" else module.progress)
        table = factors.table()
        step.metrics |= {f"curriculum/{region.label}": float(table[region]) for region in Region}
        return factors

    def _measure(self, module: Training, step: RolloutStep) -> dict[Region, float]:
        """Mean entropy in nats of each region seen so far, over all ranks."""
        self._sums += step_region_sums(module, step)[:2]
        return {r: float(self._sums[0, r] / self._sums[1, r]) for r in Region if self._sums[1, r] > 0}

    def _smooth(self, module: Training, step: RolloutStep) -> Tensor:
        """Smoothed sums [2, 6] of second moments and tokens by region, over all ranks; their ratios are logged."""
        if step.gradient_moments is None:
            raise ConfigError(
                "algorithm.weighting.initialiser 'measured_variance' needs the second moments of every rollout step in "
                f"RolloutStep.gradient_moments, found None at step {step.index}: this kind of training does not "
                "measure them. Set algorithm.weighting.initialiser: fixed."
            )
        local = torch.zeros(2, len(Region), dtype=torch.float64, device=module.device)
        for group, moments in zip(step.groups, step.gradient_moments, strict=True):
            local += torch.stack([sum_by_region(v, group.regions) for v in (moments, torch.ones_like(moments))])
        sums = module.ranks.sum(local).cpu()
        self._moments = module.objective.weighting.smoothing * self._moments + sums
        betas = region_means(self._moments).tolist()
        step.metrics |= {f"curriculum/beta/{r.label}": betas[r] for r in Region if self._moments[1, r] > 0}
        return self._moments

    def state_dict(self) -> dict[str, Any]:
        """The measurements and what came of them."""
        return {
            "sums": self._sums.tolist(),
            "moments": self._moments.tolist(),
            "initial": None if self._initial is None else asdict(self._initial),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a measurement."""
        self._sums = torch.tensor(state_dict["sums"], dtype=torch.float64)
        self._moments = torch.tensor(state_dict["moments"], dtype=torch.float64)
        self._initial = None if state_dict["initial"] is None else RegionFactors(**state_dict["initial"])
