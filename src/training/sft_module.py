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
from src.algorithm.loss_metrics import RowLoss
from src.algorithm.policy_loss import LossCounts
from src.algorithm.supervised_loss import SupervisedLoss
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.training.policy_module import PolicyModule
from src.training.settings import SupervisedSettings
from src.training.step import RolloutStep


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
        scores = self._score_later(groups, minibatches, all_of_them=self._needs_scores())
        metrics = self._means(self._completion_metrics(scored))
        step = RolloutStep(self.rollout_step, scored, groups, metrics=metrics, minibatches=minibatches)
        self._learn(step, scores, started)

    def row_loss(self, groups: list[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """Weighted likelihood; see `UpdateModule`."""
        return SupervisedLoss(torch.cat([group.weights for group in groups]), counts.weight_total)
