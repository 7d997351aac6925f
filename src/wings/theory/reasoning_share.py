"""Which tokens decide the reward: how much of its variance is settled when the thought ends. `callbacks=variance`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning import Trainer
from torch import Tensor

from src.errors import ConfigError
from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training

if TYPE_CHECKING:
    from src.data.rendering import RenderedPrompt
    from src.protocol.token_bytes import TokenBytes
    from src.rollout.collect import ScoredGroup


class ReasoningShare(RolloutCallback):
    """Samples other continuations of the thoughts of a step, and splits the variance of their rewards.

    - `decided/reasoning`: the share of the variance of `metric` that the thoughts decide, Var E[R | thought] / Var R,
      of sums over the measured groups; left out where all rewards are equal;
    - `decided/variance`: that variance, mean over groups; `decided/groups`: how many groups were measured.

    A share near 1 says that the tokens after the thought carry out what it settled: a method that gives the thought's
    tokens no weight cannot learn much there, however long and uncertain the thought is. A share near 0 says that its
    tokens are noise to the reward.

    The continuations are samples of the same weights from the end of the thought, scored as whole completions, so the
    split is causal and not a correlation. They are extra: nothing is trained on them. Their cost is that of `groups`
    times G times `continuations` completions without their thoughts.

    Args:
        every_n_rollout_steps: rollout steps from one measurement to the next; the first is measured.
        groups: prompt groups of each rank, the first ones whose rewards differ and of which two thoughts are closed.
        continuations: of each thought, at least 2.
        metric: part of the reward that is split, a key of `RewardParts.metrics()`; its scale is the same at every step.
    """

    def __init__(
        self,
        every_n_rollout_steps: int = 10,
        groups: int = 4,
        continuations: int = 8,
        metric: str = "exact_match",
    ) -> None:
        bounds = (("every_n_rollout_steps", every_n_rollout_steps, 1), ("groups", groups, 1))
        for name, value, least in (*bounds, ("continuations", continuations, 2)):
            if value < least:
                raise ConfigError(f"callbacks.reasoning_share.{name}: expected at least {least}, found {value}.")
        self._every = every_n_rollout_steps
        self._groups = groups
        self._continuations = continuations
        self._metric = metric

    def on_rollout(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Sample, score and split, with the weights that sampled the step."""
        if step.index % self._every:
            return
        started = time.monotonic()
        sums = torch.zeros(3, dtype=torch.float64)  # between, within, groups
        table = module.sampler.collector.table
        differing = (group for group in step.scored if group.teaches)
        branched = [prompts for group in differing if len(prompts := thought_prompts(group, table)) > 1][: self._groups]
        for prompts in branched:
            sums += torch.tensor([*reward_variance(self._rewards(module, prompts)), 1.0])
        between, within, groups = module.ranks.sum(sums.to(module.device)).tolist()
        step.metrics |= {"decided/groups": groups, "time/reasoning_share": time.monotonic() - started}
        if groups:
            step.metrics["decided/variance"] = (between + within) / groups
        if between + within > 0:
            step.metrics["decided/reasoning"] = between / (between + within)

    def _rewards(self, module: Training, prompts: list[RenderedPrompt]) -> Tensor:
        """Float [B, C], the metric of each continuation of each thought."""
        sampling = replace(module.sampler.params, n=self._continuations)
        groups = module.sampler.collector.collect(
            prompts, sampling, module.sampler.seed, module.rollout_step, module.progress
        )
        values = [[item.reward.parts.metrics()[self._metric] for item in group.completions] for group in groups]
        return torch.tensor(values)


def thought_prompts(group: ScoredGroup, table: TokenBytes) -> list[RenderedPrompt]:
    """The group's prompt with each of its closed thoughts written at the end, to be continued with the closing tag.

    The examples' ids tell the thoughts apart, so that each draws from a stream of its own.
    """
    prompt, prompts = group.prompt, []
    for index, item in enumerate(group.completions):
        inside = (item.decoded.regions == Region.REASONING).nonzero()
        parsed = item.decoded.parsed
        if not len(inside) or not parsed.closed[parsed.fields.index("think")]:
            continue
        ids = item.completion.token_ids[: int(inside[-1]) + 1]
        text = table.decode(ids.tolist()).decode("utf-8", "replace")
        prompts.append(
            replace(
                prompt,
                prompt_ids=torch.cat([prompt.prompt_ids, ids.to(prompt.prompt_ids.device)]),
                response_prefix=prompt.response_prefix + text,
                example=replace(prompt.example, id=f"{prompt.example.id}/thought/{index}"),
            )
        )
    return prompts


class RewardVariance(NamedTuple):
    """The variance of the rewards of one prompt, in two parts.

    Attributes:
        between: variance of E[R | beginning] over the beginnings: decided by the time they end. Unbiased, so it can be
            a little below 0 where they decide nothing.
        within: mean over the beginnings of Var[R | beginning]: decided after them.
    """

    between: float
    within: float


def reward_variance(rewards: Tensor) -> RewardVariance:
    """Var R = Var E[R | beginning] + E Var[R | beginning], each estimated without bias.

    Two beginnings with continuations that earn (1, 1) and (0, 0): all is decided, within 0, between (1 - 0)² / 2 = 0.5.
    With (1, 0) and (0, 1) the means are equal; within is 0.5, and between 0 - 0.5 / 2 = -0.25, an estimate of 0.

    >>> reward_variance(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    RewardVariance(between=0.5, within=0.0)

    Args:
        rewards: float [B, C], C continuations of each of B beginnings.

    Raises:
        ValueError: fewer than two beginnings or continuations.
    """
    beginnings, continuations = rewards.shape
    if beginnings < 2 or continuations < 2:
        raise ValueError(
            f"reward_variance: expected at least 2 beginnings with 2 continuations each, found {beginnings} and "
            f"{continuations}."
        )
    exact = rewards.double()
    within = float(exact.var(dim=1).mean())
    return RewardVariance(float(exact.mean(dim=1).var()) - within / continuations, within)
