"""What every training module shares: minibatches of clipped optimizer steps over groups, validation, and logging.

A module's `training_step` is one rollout step: it gets prompt groups from somewhere (`rl_module`: sampled;
`sft_module`: demonstrated), weighs their tokens, and hands them to `_update`. Optimisation is manual. `rollout_step`
counts these steps and drives curriculum, schedules and evaluation; Lightning's `global_step` counts optimizer steps.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.algorithm.packing import PackedRow, balance, divide, pack, pack_sequences, row_tokens
from src.algorithm.policy_loss import LossCounts, LossOutputs
from src.algorithm.region_weights import token_weights
from src.callbacks.base import RolloutCallback, RolloutStep
from src.data.rendering import RenderedPrompt
from src.models.deferred import WeightSource
from src.models.optimizers import OptimizerSettings, build_optimizer
from src.models.policy import Policy, TokenScores
from src.models.resuming import ResumableModule
from src.models.sampling_module import GroupScores, SamplingModule
from src.models.settings import AlgorithmSettings, SupervisedSettings, UpdateSettings
from src.models.sharding import place_policy, reshard
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams


class NonFiniteError(FloatingPointError):
    """Loss or gradient is NaN or infinite; no weight has been changed by it."""


class PolicyModule(SamplingModule, ResumableModule):
    """Trains a policy on weighted prompt groups; subclasses say where these come from and what the loss is.

    Args:
        policy: what is trained.
        engine: samples from it.
        collector: samples with the engine and scores.
        algorithm: the method.
        update: minibatches and bounds.
        optimizer: AdamW and schedule.
        sampling: for training, `n` completions a prompt; validation is greedy.
        seed: of sampling.
        weights: of a policy that was left on the meta device for its strategy to shard.

    Attributes:
        rollout_step: rollout steps done; also the version of the weights.
        region_factors: weight of each region before normalisation; the curriculum callback moves it.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        collector: Collector,
        algorithm: AlgorithmSettings | SupervisedSettings,
        update: UpdateSettings,
        optimizer: OptimizerSettings,
        sampling: SamplingParams,
        seed: int = 0,
        weights: WeightSource | None = None,
    ) -> None:
        super().__init__(policy.train(), engine, collector, sampling, update, seed)
        self.automatic_optimization = False
        self.algorithm = algorithm
        self.region_factors = algorithm.weighting.factors_at(algorithm.weighting.factors, 0.0)
        self._optimizer_settings = optimizer
        self.weights = weights

    @property
    def temperature(self) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return self.sampling.temperature or 1.0

    # What a subclass gives

    @abstractmethod
    def _loss(self, groups: list[PromptGroup], scores: TokenScores, counts: LossCounts) -> LossOutputs:
        """The share of a row of groups in its minibatch's loss."""

    # The parts of a rollout step

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
            columns = [scores.logprobs, scores.entropies]
            if scores.last_layer is not None:
                columns.append(scores.last_layer.second_moments)
            sizes = [len(groups[index].token_ids) for index in row]
            if row:
                for index, *parts in zip(row, *(column.split(sizes) for column in columns), strict=True):
                    scored[index] = GroupScores(*parts)
        reshard(self.policy)
        return [scored[index] for index in range(len(groups))]

    def _learn(self, step: RolloutStep, scored_from: float) -> None:
        """What follows on scored groups: callbacks, token weights, the update, the engine's weights, the log.

        Args:
            step: its groups without token weights.
            scored_from: `time.monotonic()` when scoring began.
        """
        for callback in self._rollout_callbacks():
            callback.on_rollout(self.trainer, self, step)
        self.engine.rest()
        step.groups = [self._weigh(group) for group in step.groups]
        scored_at = time.monotonic()
        step.metrics |= self._update(step.groups, step.minibatches)
        self.rollout_step += 1
        updated_at = time.monotonic()
        self._sync_engine()
        step.metrics |= {
            "time/score": scored_at - scored_from,
            "time/update": updated_at - scored_at,
            "time/sync": time.monotonic() - updated_at,
        }
        if self.engine_gap is not None:
            step.metrics["engine/gap"] = self.engine_gap
        for callback in self._rollout_callbacks():
            callback.on_rollout_step_end(self.trainer, self, step)
        self._log_step(step.metrics)
        if self.rollout_step >= self.update.rollout_steps:
            self.trainer.should_stop = True

    def _weigh(self, group: PromptGroup) -> PromptGroup:
        weighting = self.algorithm.weighting
        weights = token_weights(
            self.region_factors,
            group.regions,
            group.lengths,
            normalisation=weighting.normalisation,
            delta=weighting.delta,
        )
        return replace(group, weights=weights)

    def _update(self, groups: list[PromptGroup], counts: Sequence[int]) -> dict[str, float]:
        """Optimizer steps over all minibatches of `counts` groups; metrics as means over tokens and minibatches."""
        starts = accumulate(counts[:-1], initial=0)
        minibatches = [groups[start : start + n] for start, n in zip(starts, counts, strict=True)] * self.update.passes
        totals = LossMetrics()
        losses: list[float] = []
        norms: list[float] = []
        for minibatch in minibatches:
            loss, norm, metrics = self._optimizer_step(minibatch)
            totals = totals + metrics
            losses.append(loss)
            norms.append(norm)
        means = self._reduced(totals).means()
        means |= {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": self.optimizers().optimizer.param_groups[0]["lr"],  # type: ignore[union-attr]
        }
        return {f"train/{key}": value for key, value in means.items()}

    def _optimizer_step(self, minibatch: list[PromptGroup]) -> tuple[float, float, LossMetrics]:
        """One clipped step: (loss of the minibatch, gradient norm before clipping, metrics of this rank's rows)."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        local = torch.tensor(LossCounts.of(minibatch), dtype=torch.float64, device=self.device)
        counts = LossCounts(*self._sum_over_ranks(local).tolist())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        metrics = LossMetrics()
        optimizer.zero_grad()  # a warm start leaves some
        rows = self._rows(minibatch)
        for number, indices in enumerate(rows):
            row = [minibatch[index] for index in indices]
            scores = self.policy(self._pack(row), temperature=self.temperature)
            if row:
                output = self._loss(row, scores, counts)
                share, metrics = output.loss, metrics + output.metrics
            else:
                share = 0.0 * scores.logprobs.sum()
            with self._accumulating(last=number == len(rows) - 1):
                self.manual_backward(share * self.trainer.world_size)
            total += share.detach()
        loss = float(self._sum_over_ranks(total))
        norm = _whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.update.gradient_clip))
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            raise NonFiniteError(
                f"rollout step {self.rollout_step}: loss {loss}, gradient norm {norm}. The weights are those before "
                "this minibatch. Lower optimizer.learning_rate or look at the last rollouts in rollouts.jsonl."
            )
        optimizer.step()
        optimizer.zero_grad()  # their memory is free while the next completions are sampled
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return loss, norm, metrics

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

    def _accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """DDP reduces gradients once a minibatch, with the last row's backward."""
        model = self.trainer.model
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    # Metrics

    def _completion_metrics(self, scored: Sequence[ScoredGroup]) -> dict[str, list[float]]:
        """Reward and length of each completion, by metric."""
        values: dict[str, list[float]] = defaultdict(list)
        for group in scored:
            for item in group.completions:
                for key, value in {"total": item.reward.total, **item.reward.parts.metrics()}.items():
                    values[f"reward/{key}"].append(value)
                values["response/tokens"].append(float(len(item.completion.token_ids)))
                values["response/truncated"].append(float(item.completion.finish_reason == "length"))
        return values

    def _means(self, values: dict[str, list[float]]) -> dict[str, float]:
        """Means over the values of all ranks."""
        keys = sorted(values)
        sums = torch.tensor([[sum(values[key]), len(values[key])] for key in keys], dtype=torch.float64)
        reduced = self._sum_over_ranks(sums.to(self.device))
        return {key: float(total / count) for key, (total, count) in zip(keys, reduced, strict=True)}

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

    def _log_step(self, metrics: dict[str, float]) -> None:
        """Log against the rollout step (Lightning takes the x-axis from a metric named `step`)."""
        self.log_dict({**metrics, "step": float(self.rollout_step)}, batch_size=1)
        shown = {
            "reward": metrics["reward/total"],
            "exact": metrics["reward/exact_match"],
            "entropy": metrics["train/entropy"],
        }
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=1)

    def _rollout_callbacks(self) -> list[RolloutCallback]:
        return [c for c in self.trainer.callbacks if isinstance(c, RolloutCallback)]  # type: ignore[attr-defined]

    # Lightning

    def setup(self, stage: str) -> None:
        """Check what is known now that there are ranks.

        Raises:
            ValueError: fewer prompts in a rollout step than ranks.
        """
        ranks = self.trainer.world_size
        if self._prompts_per_step() < ranks:
            raise ValueError(
                f"data.prompts_per_step: expected at least one prompt for each of the {ranks} ranks, found "
                f"{self._prompts_per_step()}. Raise it, or lower trainer.devices."
            )

    def configure_model(self) -> None:
        """Shard the policy under a `ShardedStrategy`; every other strategy takes it as it is."""
        place_policy(self, self.trainer, self.policy, self.weights)

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule counts optimizer steps."""
        per_rollout = -(-self._prompts_per_step() // self.update.prompts_per_minibatch) * self.update.passes
        total = self.update.rollout_steps * per_rollout
        optimizer, schedule = build_optimizer(self.policy.named_parameters(), self._optimizer_settings, total)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _prompts_per_step(self) -> int:
        return int(self.trainer.datamodule.prompts_per_step)  # type: ignore[attr-defined]


def _whole(norm: Tensor) -> float:
    """A gradient norm over all shards."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
