"""How the groups of a rollout step become optimizer steps: forwards and backwards over rows, then clipped updates.

On any number of ranks a minibatch holds the same prompts, its loss is divided by its totals over all ranks, and every
rank runs as many forwards and backwards as the others. `Scorer` makes the rows; `StepGuard` decides which optimizer
steps are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics, RowLoss
from src.algorithm.policy_loss import LossCounts
from src.algorithm.scores import GroupScores, SetApart, sampled_scores
from src.training.ranks import Ranks
from src.training.row_plan import RowPlan
from src.training.sampler import Announce
from src.training.scorer import Scorer, by_group, by_piece
from src.training.settings import UpdateSettings, ZeroAdvantage
from src.training.step_guard import Minibatch, StepGuard


class Optimization(Protocol):
    """The optimizer with its schedule, and what a backward pass goes through."""

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        ...

    @property
    def replicated(self) -> bool:
        """Whether each rank has a whole copy of the weights whose gradients a backward averages (DDP)."""
        ...

    def unreduced(self) -> AbstractContextManager[None]:
        """Within this context a backward keeps a rank's gradients to itself where weights are replicated."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar."""
        ...

    def step(self) -> None:
        """One step of the optimizer and of its schedule."""
        ...

    def zero_grad(self) -> None:
        """Drop the gradients."""
        ...


class MinibatchLoss(Protocol):
    """The part of an `Objective` that is a loss."""

    needs_all_tokens: bool

    def counts(self, groups: Sequence[PromptGroup]) -> LossCounts:
        """What these groups add to the totals of their minibatch."""

    def row_loss(self, groups: Sequence[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """The share of a row of groups in its minibatch's loss."""


class Updated(NamedTuple):
    """The result of the updates of a rollout step.

    Attributes:
        groups: the same; the first minibatch's have old log-probabilities if they had none.
        metrics: `train/…`, means over tokens, ranks and the minibatches whose steps were taken.
        scores: of the groups that had none, before their update.
    """

    groups: list[PromptGroup]
    metrics: dict[str, float]
    scores: list[GroupScores]


class _Scored(NamedTuple):
    """Completions that were scored and not trained."""

    metrics: LossMetrics
    scores: list[GroupScores]


class _Accumulated(NamedTuple):
    """The result of a minibatch's rows; the gradients are with the weights."""

    loss: Tensor  # of this rank's rows, float64
    metrics: LossMetrics  # the same
    scores: list[GroupScores]  # of this rank's groups


class _Step(NamedTuple):
    """The result of an optimizer step."""

    taken: bool
    loss: float  # of the minibatch
    grad_norm: float  # before clipping
    metrics: LossMetrics  # of this rank's rows
    scores: list[GroupScores]  # of this rank's groups


class Updater:
    """Takes clipped optimizer steps over minibatches of groups.

    Args:
        scorer: makes rows of the groups and keeps them within memory.
        optimization: of the policy's weights.
        settings: passes and bounds.
        ranks: that train together.
        announce: tells of optimizer steps that were not taken.
        folder: where their minibatches are saved.

    Attributes:
        guard: decides which optimizer steps are taken.
    """

    def __init__(
        self,
        scorer: Scorer,
        optimization: Optimization,
        settings: UpdateSettings,
        ranks: Ranks,
        announce: Announce,
        folder: Path,
    ) -> None:
        self._scorer, self._optimization, self._settings = scorer, optimization, settings
        self._ranks, self._announce, self._folder = ranks, announce, folder
        self.guard = StepGuard(settings.max_bad_steps, settings.save_bad_steps)

    def zero_advantage(self, objective: MinibatchLoss) -> ZeroAdvantage:
        """`updates.zero_advantage`; `train` where a term of the loss, or of the policy's own, needs all tokens."""
        needed = objective.needs_all_tokens or self._scorer.policy.router_loss != 0
        return "train" if needed else self._settings.zero_advantage

    def run(
        self,
        groups: Sequence[PromptGroup],
        minibatches: Sequence[int],
        known: int,
        objective: MinibatchLoss,
        *,
        temperature: float,
        rollout_step: int,
    ) -> Updated:
        """Optimizer steps over all minibatches, as often as there are passes.

        Args:
            groups: of a rollout step, with token weights.
            minibatches: how many of the groups each has.
            known: how many of the groups, the last ones, have been scored; the others' first forward scores them.
            objective: what is minimised.
            temperature: divides the logits.
            rollout_step: from 0.

        Raises:
            NonFiniteError: loss or gradient was not finite `updates.max_bad_steps` times in a row.
        """
        groups = list(groups)
        starts = list(accumulate(minibatches[:-1], initial=0))
        totals = LossMetrics()
        losses: list[float] = []
        norms: list[float] = []
        missing: list[GroupScores] = []
        unknown = len(groups) - known
        runs = list(zip(starts, minibatches, strict=True)) * self._settings.passes
        for number, (start, count) in enumerate(runs):
            first = number == 0 and unknown > 0
            part = groups[start : start + count]
            minibatch = Minibatch(part, self._counts(part, objective), first, temperature, rollout_step, number)
            step = self._optimizer_step(minibatch, objective)
            if number < len(minibatches) and start < unknown:
                missing += step.scores if number == 0 else list(map(_before_updates, part, step.scores))
            if first:
                for index, scores in enumerate(step.scores):
                    groups[index] = replace(groups[index], old_logprobs=scores.logprobs)
            totals = totals + (step.metrics if step.taken else _uncounted(step.metrics))
            if step.taken:
                losses.append(step.loss)
                norms.append(step.grad_norm)
        means = self._reduced(totals).means()
        means |= {
            "loss": sum(losses) / len(losses) if losses else math.nan,
            "grad_norm": sum(norms) / len(norms) if norms else math.nan,
            "skipped": float(len(runs) - len(losses)),
            "learning_rate": self._optimization.learning_rate,
        }
        return Updated(groups, {f"train/{key}": value for key, value in means.items()}, missing)

    def _counts(self, minibatch: list[PromptGroup], objective: MinibatchLoss) -> LossCounts:
        """Totals of a minibatch over all ranks."""
        local = torch.tensor(objective.counts(minibatch), dtype=torch.float64, device=self._scorer.device)
        return LossCounts(*self._ranks.sum(local).tolist())

    def _optimizer_step(self, minibatch: Minibatch, objective: MinibatchLoss) -> _Step:
        """One clipped step; none, and nothing changes, if loss or gradient is not finite."""
        treatment = self.zero_advantage(objective)
        parts = SetApart.of(minibatch.groups, treatment != "train")
        others = self._others(parts.others, minibatch, objective, treatment)
        found = self._scorer.within_memory(parts.trained, lambda plan: self._accumulate(plan, minibatch, objective))
        self._reduce_gradients(minibatch.temperature)
        norm = _whole(torch.nn.utils.clip_grad_norm_(self._scorer.policy.parameters(), self._settings.gradient_clip))
        bad_norm = torch.tensor(float(not math.isfinite(norm)), dtype=torch.float64, device=found.loss.device)
        loss, bad_norms = self._ranks.sum(torch.stack([found.loss, bad_norm])).tolist()
        norm = math.nan if bad_norms and math.isfinite(norm) else norm  # another rank's
        taken = self.guard.allows(loss, norm)
        if taken:
            self._optimization.step()
        self._optimization.zero_grad()  # their memory is free while the next completions are sampled
        if not taken:
            self._report_bad_step(replace(minibatch, loss=loss, grad_norm=norm))
        scores = parts.merged(found.scores, others.scores)
        return _Step(taken, loss, norm, found.metrics + others.metrics, scores)

    def _others(
        self, groups: Sequence[PromptGroup], minibatch: Minibatch, objective: MinibatchLoss, treatment: ZeroAdvantage
    ) -> _Scored:
        """What is known of the completions that are not trained, without a backward pass."""
        if treatment == "score":  # all ranks, whether they have any or not
            scores = self._scorer.score(groups, minibatch.temperature)
        else:
            scores = [sampled_scores(group) for group in groups]
        if not scores:
            return _Scored(LossMetrics(), scores)
        logprobs, entropies = (torch.cat([getattr(one, name) for one in scores]) for name in ("logprobs", "entropies"))
        metrics = objective.row_loss(groups, minibatch.counts, first=minibatch.first).metrics(logprobs, entropies)
        return _Scored(_uncounted(metrics) if bool(entropies.isnan().any()) else metrics, scores)

    def _accumulate(self, plan: RowPlan, minibatch: Minibatch, objective: MinibatchLoss) -> _Accumulated:
        """Forward and backward of every row of a minibatch, from no gradient."""
        self._optimization.zero_grad()  # a warm start leaves some; so does lack of memory
        scorer = self._scorer
        total = torch.zeros((), dtype=torch.float64, device=scorer.device)
        metrics = LossMetrics()
        scored: dict[int, GroupScores] = {}
        for indices in plan.rows or [[]]:  # no row on any rank: a gradient of 0
            row = plan.row(indices)
            loss = objective.row_loss(row, minibatch.counts, first=minibatch.first) if row else None
            asked = {"loss": loss, "whole": loss.whole} if loss else {"loss": _nothing}
            scores = scorer.policy(scorer.pack(row), temperature=minibatch.temperature, **asked)
            share = scores.loss + scores.balance * (len(scores.logprobs) / minibatch.counts.num_tokens)
            with self._optimization.unreduced():
                self._optimization.backward(share * self._ranks.size)
            total += share.detach()
            if loss is not None:
                metrics = metrics + loss.metrics(scores.logprobs, scores.entropies)
                scored |= by_piece(plan, indices, scores)
        return _Accumulated(total, metrics, by_group(plan, scored))

    def _reduce_gradients(self, temperature: float) -> None:
        """DDP reduces with a backward, so once a minibatch it gets an empty one; FSDP has reduced row by row.

        Rows are not reduced one by one, so that a rank that runs out of memory can start again alone.
        """
        if self._optimization.replicated:
            scores = self._scorer.policy(self._scorer.pack([]), temperature=temperature, loss=_nothing)
            self._optimization.backward(scores.loss)

    def _report_bad_step(self, bad: Minibatch) -> None:
        """Save and announce a step that was not taken, and stop after too many."""
        saved = self.guard.keep(bad, self._folder, self._ranks.rank)
        self._announce(
            "skipped_step",
            minibatch=bad.minibatch,
            loss=str(bad.loss),
            grad_norm=str(bad.grad_norm),
            in_a_row=self.guard.in_a_row,
            saved=saved,
        )
        self.guard.check(bad.rollout_step, bad.loss, bad.grad_norm)

    def _reduced(self, metrics: LossMetrics) -> LossMetrics:
        """Loss metrics over all ranks."""
        if self._ranks.size == 1:
            return metrics
        known = self._ranks.gather((set(metrics.sums), set(metrics.maxima)))  # a rank may have had no completion at all
        keys, names = (sorted(set().union(*found)) for found in zip(*known, strict=True))
        zero = torch.zeros((), dtype=torch.float64, device=self._scorer.device)
        sums = self._ranks.sum(torch.stack([metrics.sums.get(key, zero) for key in keys]))
        maxima = {name: self._ranks.max(metrics.maxima.get(name, zero - math.inf).double()) for name in names}
        return LossMetrics(dict(zip(keys, sums, strict=True)), maxima)


def _nothing(logprobs: Tensor, entropies: Tensor, part: slice) -> Tensor:
    """The loss of a row without groups."""
    return 0.0 * logprobs.sum()


def _before_updates(group: PromptGroup, scores: GroupScores) -> GroupScores:
    """Scores whose forward came after the rollout step's first update, with the sampler's entropies if it told any."""
    return scores if group.rollout_entropies is None else scores._replace(entropies=group.rollout_entropies)


def _uncounted(metrics: LossMetrics) -> LossMetrics:
    """The same keys without a token, for what is not to count."""
    sums, maxima = ({key: torch.zeros_like(x) for key, x in part.items()} for part in (metrics.sums, metrics.maxima))
    return LossMetrics(sums, maxima)


def _whole(norm: Tensor) -> float:
    """A gradient norm over all shards."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
