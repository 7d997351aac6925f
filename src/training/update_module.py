"""How the groups of a rollout step become optimizer steps: shares of ranks, forwards and backwards, clipped updates.

On any number of ranks a minibatch holds the same prompts, its loss is divided by its totals over all ranks, and every
rank runs as many forwards and backwards as the others. Rows are made in `scoring_module`; which steps are taken says
`step_guard`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics, RowLoss
from src.algorithm.packing import divide
from src.algorithm.policy_loss import LossCounts
from src.data.rendering import RenderedPrompt
from src.training.row_plan import RowPlan
from src.training.sampling_module import GroupScores
from src.training.scoring_module import ScoringModule, by_group, by_piece
from src.training.step import announce
from src.training.step_guard import SavedMinibatch, StepGuard


class _Accumulated(NamedTuple):
    """What the forwards of a minibatch's rows found; the gradients are with the weights."""

    loss: Tensor  # of this rank's rows, float64
    metrics: LossMetrics  # the same
    scores: list[GroupScores]  # of this rank's groups


class _Step(NamedTuple):
    """What an optimizer step found."""

    taken: bool
    loss: float  # of the minibatch
    grad_norm: float  # before clipping
    metrics: LossMetrics  # of this rank's rows
    scores: list[GroupScores]  # of this rank's groups


class UpdateModule(ScoringModule):
    """A module that takes clipped optimizer steps over minibatches of groups; see `SamplingModule` for the arguments.

    Attributes:
        guard: says which optimizer steps are taken.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = StepGuard(self.update.max_bad_steps, self.update.save_bad_steps)

    # What a subclass gives

    @abstractmethod
    def row_loss(self, groups: list[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """The share of a row of groups in its minibatch's loss; `first`: no update has come since they were sampled."""

    # Who does what

    def _share(self, batch: Sequence[RenderedPrompt]) -> tuple[list[RenderedPrompt], list[int]]:
        """This rank's prompts of a rollout step, and how many of them are in each minibatch.

        A minibatch holds the same prompts on any number of ranks. It is divided by what a prompt may cost: its own
        tokens and its completions at their longest.
        """
        size, ranks = self.update.prompts_per_minibatch, self.trainer.world_size
        longest = self.sampling.n * self.sampling.max_new_tokens
        costs = [len(prompt.prompt_ids) + longest for prompt in batch]
        loads = [0] * ranks
        prompts: list[RenderedPrompt] = []
        counts: list[int] = []
        for start in range(0, len(batch), size):
            minibatch = costs[start : start + size]
            shares = divide(minibatch, ranks, loads)
            loads = [load + sum(minibatch[i] for i in share) for load, share in zip(loads, shares, strict=True)]
            mine = shares[self.trainer.global_rank]
            prompts += [batch[start + index] for index in mine]
            counts.append(len(mine))
        return prompts, counts

    # Optimizer steps

    def _update(
        self, groups: list[PromptGroup], counts: Sequence[int], known: int
    ) -> tuple[dict[str, float], list[GroupScores]]:
        """Optimizer steps over all minibatches.

        Args:
            groups: with token weights; those that are not known gain old log-probabilities, in place.
            counts: of groups in each minibatch.
            known: how many of the groups, the last ones, have scores; the others get those of their first update.

        Returns:
            Metrics, as means over tokens and minibatches, and the scores of the groups that had none.
        """
        starts = list(accumulate(counts[:-1], initial=0))
        minibatches = list(zip(starts, counts, strict=True)) * self.update.passes
        totals = LossMetrics()
        losses: list[float] = []
        norms: list[float] = []
        missing: list[GroupScores] = []
        unknown = len(groups) - known
        for number, (start, count) in enumerate(minibatches):
            first = number == 0 and unknown > 0
            step = self._optimizer_step(groups[start : start + count], number, first=first)
            if number < len(counts) and start < unknown:
                missing += step.scores
            if first:
                for index, scores in enumerate(step.scores):
                    groups[index] = replace(groups[index], old_logprobs=scores.logprobs)
            totals = totals + (step.metrics if step.taken else _uncounted(step.metrics))
            if step.taken:
                losses.append(step.loss)
                norms.append(step.grad_norm)
        means = self._reduced(totals).means()
        if not losses:  # nothing was learnt
            means = dict.fromkeys(means, math.nan)
        means |= {
            "loss": sum(losses) / len(losses) if losses else math.nan,
            "grad_norm": sum(norms) / len(norms) if norms else math.nan,
            "skipped": float(len(minibatches) - len(losses)),
            "learning_rate": self.optimizers().optimizer.param_groups[0]["lr"],  # type: ignore[union-attr]
        }
        return {f"train/{key}": value for key, value in means.items()}, missing

    def _optimizer_step(self, minibatch: list[PromptGroup], number: int, *, first: bool) -> _Step:
        """One clipped step; none if loss or gradient is not finite: weights, optimizer and schedule stay as they are.

        Raises:
            NonFiniteError: that happened `updates.max_bad_steps` times in a row.
        """
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        local = torch.tensor(LossCounts.of(minibatch), dtype=torch.float64, device=self.device)
        counts = LossCounts(*self._sum_over_ranks(local).tolist())
        found = self._within_memory(minibatch, lambda plan: self._accumulate(plan, counts, first=first))
        self._reduce_gradients()
        norm = _whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.update.gradient_clip))
        bad_norm = torch.tensor(float(not math.isfinite(norm)), dtype=torch.float64, device=self.device)
        loss, bad_norms = self._sum_over_ranks(torch.stack([found.loss, bad_norm])).tolist()
        norm = math.nan if bad_norms and math.isfinite(norm) else norm  # another rank's
        taken = self.guard.allows(loss, norm)
        if taken:
            optimizer.step()
            self.lr_schedulers().step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # their memory is free while the next completions are sampled
        if not taken:
            self._report_bad_step(
                SavedMinibatch(minibatch, counts, first, self.temperature, self.rollout_step, number, loss, norm)
            )
        return _Step(taken, loss, norm, found.metrics, found.scores)

    def _accumulate(self, plan: RowPlan, counts: LossCounts, *, first: bool) -> _Accumulated:
        """Forward and backward of every row of a minibatch, from no gradient."""
        cast(torch.optim.Optimizer, self.optimizers()).zero_grad()  # a warm start leaves some; so does lack of memory
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        metrics = LossMetrics()
        scored: dict[int, GroupScores] = {}
        for indices in plan.rows:
            row = plan.row(indices)
            loss = self.row_loss(row, counts, first=first) if row else None
            scores = self.policy(self._pack(row), temperature=self.temperature, loss=loss or _nothing)
            with self._no_reduction():
                self.manual_backward(scores.loss * self.trainer.world_size)
            total += scores.loss.detach()
            if loss is not None:
                metrics = metrics + loss.metrics(scores.logprobs, scores.entropies)
                scored |= by_piece(plan, indices, scores)
        return _Accumulated(total, metrics, by_group(plan, scored))

    def _no_reduction(self) -> AbstractContextManager[None]:
        """DDP keeps a rank's gradients to itself: a rank that runs out of memory can start again alone."""
        model = self.trainer.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _reduce_gradients(self) -> None:
        """DDP reduces with a backward, so once a minibatch it gets an empty one; FSDP has reduced row by row."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            scores = self.policy(self._pack([]), temperature=self.temperature, loss=_nothing)
            self.manual_backward(scores.loss)

    def _report_bad_step(self, minibatch: SavedMinibatch) -> None:
        """Save and announce a step that was not taken, and stop after too many."""
        saved = self.guard.keep(minibatch, Path(self.trainer.default_root_dir), self.trainer.global_rank)
        announce(
            self.trainer,
            "skipped_step",
            minibatch=minibatch.minibatch,
            loss=str(minibatch.loss),
            grad_norm=str(minibatch.grad_norm),
            in_a_row=self.guard.in_a_row,
            saved=saved,
        )
        self.guard.check(self.rollout_step, minibatch.loss, minibatch.grad_norm)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was skipped, and how long rows may be."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["guard"], checkpoint["row_budget"] = self.guard.state_dict(), self.row_budget.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with these; a checkpoint that has none starts them anew."""
        super().on_load_checkpoint(checkpoint)
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
            self.row_budget.load_state_dict(checkpoint["row_budget"])

    # Over ranks

    def _reduced(self, metrics: LossMetrics) -> LossMetrics:
        """Loss metrics over all ranks."""
        if self.trainer.world_size == 1:
            return metrics
        keys = sorted(metrics.sums)
        sums = self._sum_over_ranks(torch.stack([metrics.sums[key] for key in keys]))
        maxima = {name: self._max_over_ranks(metrics.maxima[name]) for name in sorted(metrics.maxima)}
        return LossMetrics(dict(zip(keys, sums, strict=True)), maxima)


def _nothing(logprobs: Tensor, entropies: Tensor, part: slice) -> Tensor:
    """The loss of a row without groups."""
    return 0.0 * logprobs.sum()


def _uncounted(metrics: LossMetrics) -> LossMetrics:
    """The same keys without a token, for a minibatch that changed nothing."""
    sums, maxima = ({key: torch.zeros_like(x) for key, x in part.items()} for part in (metrics.sums, metrics.maxima))
    return LossMetrics(sums, maxima)


def _whole(norm: Tensor) -> float:
    """A gradient norm over all shards."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
