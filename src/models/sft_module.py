"""The LightningModule of SFT, TSFT and RSFT: targets in place of samples, likelihood in place of advantage.

A step takes the prompts that a rollout step of `rl_module` would take, with the same minibatches, validation and
callbacks, so that both can be compared and evaluated alike. The methods differ in the weights of regions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.algorithm.policy_loss import LossCounts, LossOutputs
from src.algorithm.supervised_loss import supervised_loss
from src.callbacks.base import RolloutStep
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.models.policy import TokenScores
from src.models.policy_module import PolicyModule
from src.models.settings import SupervisedSettings


class SFTModule(PolicyModule):
    """Trains a policy on the targets of its prompts.

    Args:
        renderer: of the targets.
        args: see `PolicyModule`.
        kwargs: see `PolicyModule`.
    """

    algorithm: SupervisedSettings

    def __init__(self, renderer: PromptRenderer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._renderer = renderer

    @property
    def temperature(self) -> float:
        """Likelihood is that of the unscaled distribution."""
        return 1.0

    def training_step(self, batch: Sequence[RenderedPrompt], batch_idx: int) -> None:
        """One step over the batch's targets."""
        started = time.monotonic()
        prompts, minibatches = self._share(batch)
        targets = [self._renderer.render_target(prompt.example) for prompt in prompts]
        scored = self.collector.demonstrate(prompts, targets, self.rollout_step, self.progress)
        groups = [group.to_experience("grpo", 0.0).to(self.device) for group in scored]
        entropies = [scores.entropies for scores in self._score(groups)]
        metrics = self._means(self._completion_metrics(scored))
        step = RolloutStep(self.rollout_step, scored, groups, entropies, metrics, minibatches=minibatches)
        self._learn(step, started)

    def _loss(self, groups: list[PromptGroup], scores: TokenScores, counts: LossCounts) -> LossOutputs:
        weights = torch.cat([group.weights for group in groups])
        sums = {
            "entropy": scores.entropies.detach().double().sum(),
            "nll": -scores.logprobs.detach().double().sum(),
            "tokens": torch.tensor(float(len(weights)), dtype=torch.float64, device=weights.device),
        }
        return LossOutputs(supervised_loss(scores.logprobs, weights, counts.weight_total), LossMetrics(sums))
