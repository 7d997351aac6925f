"""How the groups of a rollout step become optimizer steps: shares of ranks, packed rows, scoring, clipped updates.

On any number of ranks a minibatch holds the same prompts, its loss is divided by its totals over all ranks, and every
rank runs as many forwards and backwards as the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics, RowLoss
from src.algorithm.packing import PackedRow, balance, divide, pack, pack_sequences, row_tokens
from src.algorithm.policy_loss import LossCounts
from src.data.rendering import RenderedPrompt
from src.models.policy import TokenScores
from src.models.sampling_module import GroupScores, SamplingModule
from src.models.sharding import reshard


class NonFiniteError(FloatingPointError):
    """Loss or gradient is NaN or infinite; no weight has been changed by it."""


class _Step(NamedTuple):
    """What an optimizer step found."""

    loss: float  # of the minibatch
    grad_norm: float  # before clipping
    metrics: LossMetrics  # of this rank's rows
    scores: list[GroupScores]  # of this rank's groups


class UpdateModule(SamplingModule):
    """A module that takes clipped optimizer steps over minibatches of groups."""

    # What a subclass gives

    @abstractmethod
    def _loss(self, groups: list[PromptGroup], counts: LossCounts, *, first: bool) -> RowLoss:
        """The share of a row of groups in its minibatch's loss; `first`: no update has come since they were sampled."""

    @property
    def temperature(self) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return self.sampling.temperature or 1.0

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

    def _rows(self, groups: list[PromptGroup]) -> list[list[int]]:
        """Indices of the groups of each packed row; as many rows on every rank, the last of which may be empty."""
        rows = balance([row_tokens(group) for group in groups], self.update.max_row_tokens)
        if self.trainer.world_size == 1:
            return rows
        count = torch.tensor(len(rows), device=self.device)
        needed = int(self.trainer.strategy.reduce(count, reduce_op="max"))
        return rows + [[]] * (needed - len(rows))

    def _pack(self, groups: list[PromptGroup]) -> PackedRow:
        """The groups' row; without any, two tokens, for a forward that the other ranks wait for."""
        if groups:
            return pack(groups)
        token = torch.zeros(1, dtype=torch.long, device=self.device)
        return pack_sequences([(token, token)])

    # Scoring

    @torch.no_grad()
    def _score(
        self, groups: list[PromptGroup], *, moments: bool = False, temperature: float | None = None
    ) -> list[GroupScores]:
        """What the policy says about each group's tokens, before the update."""
        temperature = self.temperature if temperature is None else temperature
        scored: dict[int, GroupScores] = {}
        for row in self._rows(groups):
            packed = self._pack([groups[index] for index in row])
            scores = self.policy(packed, temperature=temperature, last_layer="moments" if moments else None)
            scored |= _by_group(groups, row, scores)
        reshard(self.policy)
        return [scored[index] for index in range(len(groups))]

    def _score_later(self, groups: list[PromptGroup], counts: Sequence[int], *, all_of_them: bool) -> list[GroupScores]:
        """Scores of the groups whose update does not give them: those of the first minibatch wait for its forward.

        Args:
            groups: of a rollout step.
            counts: of groups in each minibatch.
            all_of_them: something needs all scores before the update.

        Returns:
            Of the last groups, in order: all, or all but the first minibatch.
        """
        reused = 0 if all_of_them or self.update.old_logprobs == "score" else counts[0]
        return self._score(groups[reused:])

    # Optimizer steps

    def _update(
        self, groups: list[PromptGroup], counts: Sequence[int], known: int
    ) -> tuple[dict[str, float], list[GroupScores]]:
        """Optimizer steps over all minibatches.

        Args:
            groups: with token weights; those that are not known gain old log-probabilities, in place.
            counts: of groups in each minibatch.
            known: how many of the groups, the last ones, have scores.

        Returns:
            Metrics, as means over tokens and minibatches, and the scores of the groups that had none.
        """
        starts = list(accumulate(counts[:-1], initial=0))
        minibatches = list(zip(starts, counts, strict=True)) * self.update.passes
        totals = LossMetrics()
        losses: list[float] = []
        norms: list[float] = []
        missing: list[GroupScores] = []
        for number, (start, count) in enumerate(minibatches):
            first = number == 0 and known < len(groups)
            step = self._optimizer_step(groups[start : start + count], first=first)
            if first:
                missing = step.scores
                for index, scores in enumerate(missing):
                    groups[index] = replace(groups[index], old_logprobs=scores.logprobs)
            totals = totals + step.metrics
            losses.append(step.loss)
            norms.append(step.grad_norm)
        means = self._reduced(totals).means()
        means |= {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": self.optimizers().optimizer.param_groups[0]["lr"],  # type: ignore[union-attr]
        }
        return {f"train/{key}": value for key, value in means.items()}, missing

    def _optimizer_step(self, minibatch: list[PromptGroup], *, first: bool) -> _Step:
        """One clipped step."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        local = torch.tensor(LossCounts.of(minibatch), dtype=torch.float64, device=self.device)
        counts = LossCounts(*self._sum_over_ranks(local).tolist())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        metrics = LossMetrics()
        scored: dict[int, GroupScores] = {}
        optimizer.zero_grad()  # a warm start leaves some
        rows = self._rows(minibatch)
        for number, indices in enumerate(rows):
            row = [minibatch[index] for index in indices]
            loss = self._loss(row, counts, first=first) if row else None
            scores = self.policy(self._pack(row), temperature=self.temperature, loss=loss or _nothing)
            with self._accumulating(last=number == len(rows) - 1):
                self.manual_backward(scores.loss * self.trainer.world_size)
            total += scores.loss.detach()
            if loss is not None:
                metrics = metrics + loss.metrics(scores.logprobs, scores.entropies)
                scored |= _by_group(minibatch, indices, scores)
        value = float(self._sum_over_ranks(total))
        norm = _whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.update.gradient_clip))
        if not (torch.isfinite(torch.tensor([value, norm])).all()):
            raise NonFiniteError(
                f"rollout step {self.rollout_step}: loss {value}, gradient norm {norm}. The weights are those before "
                "this minibatch. Lower optimizer.learning_rate or look at the last rollouts in rollouts.jsonl."
            )
        optimizer.step()
        optimizer.zero_grad()  # their memory is free while the next completions are sampled
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return _Step(value, norm, metrics, [scored[index] for index in range(len(minibatch))])

    def _accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """DDP reduces gradients once a minibatch, with the last row's backward."""
        model = self.trainer.model
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    # Over ranks

    def _reduced(self, metrics: LossMetrics) -> LossMetrics:
        """Loss metrics over all ranks."""
        if self.trainer.world_size == 1:
            return metrics
        keys = sorted(metrics.sums)
        sums = self._sum_over_ranks(torch.stack([metrics.sums[key] for key in keys]))
        maxima = {
            name: cast(Tensor, self.trainer.strategy.reduce(metrics.maxima[name], reduce_op="max"))
            for name in sorted(metrics.maxima)
        }
        return LossMetrics(dict(zip(keys, sums, strict=True)), maxima)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="sum"))


def _nothing(logprobs: Tensor, entropies: Tensor, part: slice) -> Tensor:
    """The loss of a row without groups."""
    return 0.0 * logprobs.sum()


def _by_group(groups: Sequence[PromptGroup], row: Iterable[int], scores: TokenScores) -> dict[int, GroupScores]:
    """The scores of a row's groups, by their index."""
    row = list(row)
    if not row:
        return {}
    columns = [scores.logprobs, scores.entropies]
    if scores.last_layer is not None:
        columns.append(scores.last_layer.second_moments)
    sizes = [len(groups[index].token_ids) for index in row]
    parts = zip(*(column.split(sizes) for column in columns), strict=True)
    return {index: GroupScores(*part) for index, part in zip(row, parts, strict=True)}


def _whole(norm: Tensor) -> float:
    """A gradient norm over all shards."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
