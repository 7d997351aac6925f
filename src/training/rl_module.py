"""The LightningModule of ResT, GRPO and their kin: the order of the parts of a rollout step, and nothing else.

One `training_step`: sample, reward, score with the trainer (the first minibatch is scored by its update), weigh tokens,
then minibatches of clipped optimizer steps, then the weights go to the engine. What is not particular to policy
gradients is in `policy_module`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from src.algorithm.advantages import zero_variance
from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import RowLoss
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss
from src.data.rendering import RenderedPrompt
from src.rollout.collect import ScoredGroup
from src.training.policy_module import PolicyModule
from src.training.reference import FrozenStart
from src.training.sampling_module import GroupScores
from src.training.settings import AlgorithmSettings
from src.training.step import RolloutStep


class RLModule(PolicyModule):
    """Trains a policy on its own scored completions; see `PolicyModule` for the arguments."""

    algorithm: AlgorithmSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference: FrozenStart | None = None

    def configure_model(self) -> None:
        """Freeze the start, after a warm start and before a checkpoint, if the loss wants a reference."""
        super().configure_model()
        if self.algorithm.loss.kl_coef > 0 and self.reference is None:
            self.reference = FrozenStart(self.policy)

    def training_step(self, batch: Sequence[RenderedPrompt], batch_idx: int) -> None:
        """One rollout step; see the module's docstring."""
        started = time.monotonic()
        prompts, minibatches = self._share(batch)
        scored, resampled = self._sample(prompts)
        sampled = time.monotonic()
        groups, scores = self._scored_groups(scored, minibatches)
        metrics = {**self._rollout_metrics(scored, groups, resampled), "time/rollout": sampled - started}
        step = RolloutStep(self.rollout_step, scored, groups, metrics=metrics, minibatches=minibatches)
        step.gradient_moments = [s.moments for s in scores if s.moments is not None] or None
        self._learn(step, scores, sampled)

    def _sample(self, prompts: Sequence[RenderedPrompt]) -> tuple[list[ScoredGroup], int]:
        """A scored group for each prompt, and how many of them replace one that taught nothing.

        Dynamic sampling, bounded: groups of zero variance are replaced by groups of other training prompts that have
        some, for `resample_rounds` rounds at most. Those that are left stay. All ranks sample until none of them has
        any left, so that an engine of several ranks is called by all of them.
        """
        groups = self._collect(prompts)
        seen = {prompt.example.id for prompt in prompts}
        replaced = 0
        for attempt in range(self.algorithm.resample_rounds):
            empty = [index for index, group in enumerate(groups) if not group.teaches]
            if not float(self._sum_over_ranks(torch.tensor(float(len(empty)), device=self.device))):
                break
            others = self.trainer.datamodule.draw(len(empty), f"{self.rollout_step}/{attempt}", seen)  # type: ignore[attr-defined]
            seen |= {prompt.example.id for prompt in others}
            useful = [group for group in self._collect(others) if group.teaches]
            for index, group in zip(empty, useful, strict=False):
                groups[index] = group
            replaced += len(useful)
        return groups, replaced

    def _collect(self, prompts: Sequence[RenderedPrompt]) -> list[ScoredGroup]:
        return self._sampled(prompts, self.sampling, together=True)

    def _scored_groups(
        self, scored: Sequence[ScoredGroup], minibatches: Sequence[int]
    ) -> tuple[list[PromptGroup], list[GroupScores]]:
        """The groups with the reference's log-probabilities, if the loss wants them, and the policy's scores.

        There are no scores of the first groups if their minibatch's update can make them. Where no pass scores the
        minibatches after the first either, their old log-probabilities are the sampler's.
        """
        estimator, delta = self.algorithm.estimator, self.algorithm.advantage_delta
        groups = [group.to_experience(estimator, delta).to(self.device) for group in scored]
        if self.algorithm.weighting.needs_moments:
            scores = self._score(groups, moments=True)
        else:
            scores = self._score_later(groups, minibatches, all_of_them=self._needs_scores())
        for index in range(minibatches[0], len(groups) - len(scores)):
            groups[index] = replace(groups[index], old_logprobs=groups[index].rollout_logprobs)
        if self.reference is not None:
            with self.reference.in_place_of(self.policy):
                frozen = self._score(groups)
            groups = [replace(group, ref_logprobs=s.logprobs) for group, s in zip(groups, frozen, strict=True)]
        return groups, scores

    def row_loss(self, groups: list[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """Eq. 19 or its variant; see `UpdateModule`."""
        return PolicyLoss(LossInputs.of(groups, first=first), self.algorithm.loss, counts)

    def _rollout_metrics(
        self, scored: Sequence[ScoredGroup], groups: Sequence[PromptGroup], resampled: int
    ) -> dict[str, float]:
        values = self._completion_metrics(scored)
        values["group/zero_variance"] = [float(zero_variance(group.rewards)) for group in groups]
        values["group/reward_std"] = [float(group.rewards.std(correction=0)) for group in groups]
        values["group/resampled"] = [float(index < resampled) for index in range(len(groups))]
        return self._means(values)
