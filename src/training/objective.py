"""What a training optimises: where its groups come from and what the loss of a row is. Only here RL and SFT differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from src.algorithm.advantages import zero_variance
from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import RowLoss
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss
from src.algorithm.region_weights import RegionWeighting
from src.algorithm.supervised_loss import SupervisedLoss
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.protocol.types import Region
from src.rollout.collect import ScoredGroup
from src.training.ranks import Ranks
from src.training.sampler import Sampler
from src.training.settings import AlgorithmSettings, SupervisedSettings


class Gathered(NamedTuple):
    """The groups of a rollout step.

    Attributes:
        scored: prompts, completions and rewards.
        resampled: how many of them replace one that taught nothing.
    """

    scored: list[ScoredGroup]
    resampled: int = 0


class Objective(Protocol):
    """What a training optimises.

    Attributes:
        name: of the method, for tables and plots.
        weighting: token weights by region.
        samples: whether completions are the policy's own, so that the sampler's log-probabilities mean something.
        needs_reference: whether the loss compares with the policy's frozen start.
        needs_all_tokens: whether completions without an advantage have a gradient too.
    """

    name: str
    weighting: RegionWeighting
    samples: bool
    needs_reference: bool
    needs_all_tokens: bool

    def temperature(self, sampler: Sampler) -> float:
        """What logits are divided by in the loss."""
        ...

    def groups(self, prompts: Sequence[RenderedPrompt], sampler: Sampler) -> Gathered:
        """A scored group for each of this rank's prompts. All ranks call this together."""
        ...

    def experience(self, scored: ScoredGroup) -> PromptGroup:
        """A group as tensors, with advantages."""
        ...

    def metrics(self, groups: Sequence[PromptGroup], resampled: int) -> dict[str, list[float]]:
        """A value of each group, by metric."""
        ...

    def counts(self, groups: Sequence[PromptGroup]) -> LossCounts:
        """What these groups add to the totals of their minibatch."""
        ...

    def row_loss(self, groups: Sequence[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """The share of a row of groups in its minibatch's loss.

        Args:
            groups: with token weights, and old log-probabilities unless `first`.
            counts: totals of the minibatch over all ranks.
            first: no update has come since they were sampled.
        """
        ...


Draw = Callable[[int, str, Collection[str]], list[RenderedPrompt]]
"""(how many, key, ids to leave out) → further training prompts; `ToolDialogueDataModule.draw`."""


class PolicyGradient:
    """The policy's own completions, scored and compared within their group: ResT, GRPO and kin.

    Args:
        settings: the method.
        ranks: that train together.
        draw: further prompts for dynamic sampling.
    """

    samples = True

    def __init__(self, settings: AlgorithmSettings, ranks: Ranks, draw: Draw) -> None:
        self.settings, self._ranks, self._draw = settings, ranks, draw
        self.name, self.weighting = settings.name, settings.weighting
        self.needs_reference = settings.loss.kl_coef > 0
        self.needs_all_tokens = settings.loss.needs_all_tokens

    def temperature(self, sampler: Sampler) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return sampler.params.temperature or 1.0

    def groups(self, prompts: Sequence[RenderedPrompt], sampler: Sampler) -> Gathered:
        """Sampled groups; those that teach nothing are replaced (dynamic sampling), within bounds.

        Groups of zero variance are replaced by groups of other training prompts that have some, for `resample_rounds`
        rounds at most. Those that are left stay. All ranks sample until none of them has any left, so that an engine
        of several ranks is called by all of them.
        """
        groups = sampler.sample(prompts)
        seen = {prompt.example.id for prompt in prompts}
        replaced = 0
        for attempt in range(self.settings.resample_rounds):
            empty = [index for index, group in enumerate(groups) if not group.teaches]
            if not float(self._ranks.sum(torch.tensor(float(len(empty))))):
                break
            others = self._draw(len(empty), f"{sampler.rollout_step}/{attempt}", seen)
            seen |= {prompt.example.id for prompt in others}
            useful = [group for group in sampler.sample(others) if group.teaches]
            for index, group in zip(empty, useful, strict=False):
                groups[index] = group
            replaced += len(useful)
        return Gathered(groups, replaced)

    def experience(self, scored: ScoredGroup) -> PromptGroup:
        """See `Objective.experience`."""
        settings = self.settings
        return scored.to_experience(settings.estimator, settings.advantage_delta, settings.credit)

    def metrics(self, groups: Sequence[PromptGroup], resampled: int) -> dict[str, list[float]]:
        """See `Objective.metrics`."""
        return {
            "group/zero_variance": [float(zero_variance(group.rewards)) for group in groups],
            "group/zero_advantage": [float((~group.with_advantage).float().mean()) for group in groups],
            "group/reward_std": [float(group.rewards.std(correction=0)) for group in groups],
            "group/resampled": [float(index < resampled) for index in range(len(groups))],
        }

    def counts(self, groups: Sequence[PromptGroup]) -> LossCounts:
        """See `Objective.counts`."""
        return LossCounts.of(groups, self.settings.loss.denominator)

    def row_loss(self, groups: Sequence[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """Eq. 19 or its variant."""
        return PolicyLoss(LossInputs.of(list(groups), first=first), self.settings.loss, counts)


class Imitation:
    """Targets in place of samples, likelihood in place of advantage: SFT, TSFT, RSFT, and the warm start.

    A step takes the prompts that a rollout step would take, with the same minibatches, validation and callbacks, so
    that methods can be compared. They differ in the weights of regions.

    Args:
        settings: the method.
        renderer: of the targets.
        prompt_weight: in [0, 1], weight of a prompt's token beside a target's 1. Above 0 the policy also learns to
            read; 0 is the usual fine-tuning.

    Raises:
        ValueError: another weight.
    """

    samples = False
    needs_reference = False
    needs_all_tokens = True

    def __init__(self, settings: SupervisedSettings, renderer: PromptRenderer, prompt_weight: float = 0.0) -> None:
        if not 0 <= prompt_weight <= 1:
            raise ValueError(f"prompt_weight: expected a value in [0, 1], found {prompt_weight}.")
        self.settings, self._renderer, self._prompt_weight = settings, renderer, prompt_weight
        self.name, self.weighting = settings.name, settings.weighting

    def temperature(self, sampler: Sampler) -> float:
        """Likelihood is that of the unscaled distribution."""
        return 1.0

    def groups(self, prompts: Sequence[RenderedPrompt], sampler: Sampler) -> Gathered:
        """A group of one completion for each prompt: its target, scored as if it had been sampled."""
        targets = [self._renderer.render_target(prompt.example) for prompt in prompts]
        return Gathered(sampler.collector.demonstrate(prompts, targets, sampler.rollout_step, sampler.progress))

    def experience(self, scored: ScoredGroup) -> PromptGroup:
        """See `Objective.experience`; with a prompt weight, the prompt's tokens after the first are scored too."""
        group = scored.to_experience("grpo", 0.0)
        return with_prompt(group, self._prompt_weight) if self._prompt_weight else group

    def metrics(self, groups: Sequence[PromptGroup], resampled: int) -> dict[str, list[float]]:
        """None of its own."""
        return {}

    def counts(self, groups: Sequence[PromptGroup]) -> LossCounts:
        """See `Objective.counts`."""
        return LossCounts.of(groups)

    def row_loss(self, groups: Sequence[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """Weighted likelihood."""
        return SupervisedLoss(torch.cat([group.weights for group in groups]), counts.weight_total)


def with_prompt(group: PromptGroup, weight: float) -> PromptGroup:
    """A group of one completion whose prompt is scored too, from its second token on.

    Example, prompt [1, 2, 3], completion [8, 9], weight 0.2: prompt [1], tokens [2, 3, 8, 9], weights
    [0.2, 0.2, 1, 1]; the prompt's tokens are in the region OTHER.

    Args:
        group: on any device; of one completion.
        weight: of a prompt's token.
    """
    extra = len(group.prompt_ids) - 1

    def extended(values: Tensor, fill: float) -> Tensor:
        return torch.cat([values.new_full((extra,), fill), values])

    return replace(
        group,
        prompt_ids=group.prompt_ids[:1],
        token_ids=torch.cat([group.prompt_ids[1:], group.token_ids.to(group.prompt_ids.device)]),
        lengths=group.lengths + extra,
        rollout_logprobs=extended(group.rollout_logprobs, 0.0),
        regions=extended(group.regions, int(Region.OTHER)),
        weights=extended(group.weights, weight),
    )
