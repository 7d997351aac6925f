"""What every training module shares: minibatches of clipped optimizer steps over groups, validation, and logging.

A module's `training_step` is one rollout step: it gets prompt groups from somewhere (`rl_module`: sampled;
`sft_module`: demonstrated), weighs their tokens, and hands them to `_update`. Optimisation is manual. `rollout_step`
counts these steps and drives curriculum, schedules and evaluation; Lightning's `global_step` counts optimizer steps.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.algorithm.packing import balance, pack, row_tokens
from src.algorithm.policy_loss import LossCounts, LossOutputs
from src.algorithm.region_weights import token_weights
from src.callbacks.base import RolloutCallback, RolloutStep
from src.data.rendering import RenderedPrompt
from src.models.lora import merged_named_tensors
from src.models.optimizers import OptimizerSettings, build_optimizer
from src.models.policy import Policy, TokenScores
from src.models.settings import AlgorithmSettings, SupervisedSettings, UpdateSettings
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams


class NonFiniteError(FloatingPointError):
    """Loss or gradient is NaN or infinite; no weight has been changed by it."""


class GroupScores(NamedTuple):
    """What the policy says about a group's N sampled tokens before the update; all float32 [N].

    Attributes:
        logprobs: the trainer's.
        entropies: in nats.
        moments: squared norms of the last layer's gradients; None unless asked for.
    """

    logprobs: Tensor
    entropies: Tensor
    moments: Tensor | None = None


class PolicyModule(LightningModule, ABC):
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

    Attributes:
        rollout_step: rollout steps done; also the version of the weights.
        region_factors: weight of each region before normalisation; the curriculum callback moves it.
        validated: (rollout step, metrics) of the last validation; metrics are empty before the first.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.train()
        self.engine = engine
        self.collector = collector
        self.algorithm = algorithm
        self.update = update
        self.sampling = sampling
        self.seed = seed
        self.rollout_step = 0
        self.region_factors = algorithm.weighting.factors_at(algorithm.weighting.factors, 0.0)
        self.validated: tuple[int, dict[str, float]] = (-1, {})
        self._optimizer_settings = optimizer
        self._val_metrics: dict[str, MeanMetric] = {}

    @property
    def progress(self) -> float:
        """Fraction of the run's rollout steps that is done, in [0, 1]."""
        return self.rollout_step / self.update.rollout_steps

    @property
    def temperature(self) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return self.sampling.temperature or 1.0

    # What a subclass gives

    @abstractmethod
    def _loss(self, groups: list[PromptGroup], scores: TokenScores, counts: LossCounts) -> LossOutputs:
        """The share of a row of groups in its minibatch's loss."""

    # The parts of a rollout step

    @torch.no_grad()
    def _score(self, groups: list[PromptGroup], moments: bool = False) -> list[GroupScores]:
        """What the policy says about each group's tokens, before the update."""
        scored: dict[int, GroupScores] = {}
        for row in self._rows(groups):
            packed = pack([groups[index] for index in row])
            scores = self.policy(packed, temperature=self.temperature, last_layer="moments" if moments else None)
            columns = [scores.logprobs, scores.entropies]
            if scores.last_layer is not None:
                columns.append(scores.last_layer.second_moments)
            sizes = [len(groups[index].token_ids) for index in row]
            for index, *parts in zip(row, *(column.split(sizes) for column in columns), strict=True):
                scored[index] = GroupScores(*parts)
        return [scored[index] for index in range(len(groups))]

    def _learn(self, step: RolloutStep, scored_from: float) -> None:
        """What follows on scored groups: callbacks, token weights, the update, the engine's weights, the log.

        Args:
            step: its groups without token weights.
            scored_from: `time.monotonic()` when scoring began.
        """
        for callback in self._rollout_callbacks():
            callback.on_rollout(self.trainer, self, step)
        step.groups = [self._weigh(group) for group in step.groups]
        scored_at = time.monotonic()
        step.metrics |= self._update(step.groups)
        self.rollout_step += 1
        self._sync_engine()
        step.metrics |= {"time/score": scored_at - scored_from, "time/update": time.monotonic() - scored_at}
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

    def _update(self, groups: list[PromptGroup]) -> dict[str, float]:
        """Optimizer steps over all minibatches; metrics as means over tokens and minibatches."""
        size = max(1, self.update.prompts_per_minibatch // self.trainer.world_size)
        minibatches = [groups[start : start + size] for start in range(0, len(groups), size)] * self.update.passes
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
        optimizer.zero_grad()
        for indices in self._rows(minibatch):
            row = [minibatch[index] for index in indices]
            output = self._loss(row, self.policy(pack(row), temperature=self.temperature), counts)
            self.manual_backward(output.loss * self.trainer.world_size)
            total += output.loss.detach()
            metrics = metrics + output.metrics
        loss = float(self._sum_over_ranks(total))
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.update.gradient_clip))
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            raise NonFiniteError(
                f"rollout step {self.rollout_step}: loss {loss}, gradient norm {norm}. The weights are those before "
                "this minibatch. Lower optimizer.learning_rate or look at the last rollouts in rollouts.jsonl."
            )
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return loss, norm, metrics

    def _rows(self, groups: list[PromptGroup]) -> list[list[int]]:
        """Indices of the groups of each packed row; as many rows on every rank."""
        sizes, budget = [row_tokens(group) for group in groups], self.update.max_row_tokens
        rows = balance(sizes, budget)
        if self.trainer.world_size == 1:
            return rows
        count = torch.tensor(len(rows), device=self.device)
        needed = int(self.trainer.strategy.reduce(count, reduce_op="max"))
        return rows if needed == len(rows) else balance(sizes, budget, min_rows=needed)

    def _sync_engine(self) -> None:
        self.engine.update_weights(merged_named_tensors(self.policy.model), self.rollout_step)

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

    # Validation: greedy completions of held-out prompts

    def on_validation_epoch_start(self) -> None:
        """New means for every split, the same on every rank."""
        if self.engine.weights_version != self.rollout_step:
            self._sync_engine()
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        self._val_metrics = {}
        for name in datamodule.val_names:
            tags = sorted({tag for prompt in datamodule.prompts(name) for tag in prompt.example.tags})
            for key in (*_VALIDATION_METRICS, *(f"exact_match/{tag}" for tag in tags)):
                metric = MeanMetric().to(self.device)
                metric.update(0.0, weight=0.0)  # a rank without such a prompt takes part in the mean all the same
                self._val_metrics[f"{name}/{key}"] = metric

    def validation_step(self, batch: list[RenderedPrompt], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Greedy completions of a batch of one split."""
        name = self.trainer.datamodule.val_names[dataloader_idx]  # type: ignore[attr-defined]
        greedy = replace(self.sampling, n=1, temperature=0.0, top_p=1.0, top_k=0)
        for group in self.collector.collect(batch, greedy, self.seed, self.rollout_step, self.progress):
            (item,) = group.completions
            values = {"reward": item.reward.total, **item.reward.parts.metrics()}
            values["tokens"] = float(len(item.completion.token_ids))
            values["truncated"] = float(item.completion.finish_reason == "length")
            values |= {f"exact_match/{tag}": values["exact_match"] for tag in group.prompt.example.tags}
            for key, value in values.items():
                self._val_metrics[f"{name}/{key}"].update(value)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all prompts of all ranks."""
        means = {key: float(metric.compute()) for key, metric in self._val_metrics.items()}
        values = {key: mean for key, mean in means.items() if math.isfinite(mean)}  # no prompt with this tag was seen
        self.validated = (self.rollout_step, values)
        self.log_dict({**values, "step": float(self.rollout_step)})

    # Lightning

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule counts optimizer steps."""
        per_rollout = -(-self._prompts_per_step() // self.update.prompts_per_minibatch) * self.update.passes
        total = self.update.rollout_steps * per_rollout
        optimizer, schedule = build_optimizer(self.policy.named_parameters(), self._optimizer_settings, total)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _prompts_per_step(self) -> int:
        return int(self.trainer.datamodule.prompts_per_step)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """The engine starts from the policy's weights, which a checkpoint may have just set."""
        self._sync_engine()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rollout step."""
        checkpoint["rollout_step"] = self.rollout_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the next rollout step."""
        if "rollout_step" not in checkpoint:
            raise ValueError(
                "ckpt_path: expected a checkpoint of a training run with the key 'rollout_step', found none. To start "
                "from a model's weights use policy.path."
            )
        done = int(checkpoint["rollout_step"])
        if done >= self.update.rollout_steps:
            raise ValueError(
                "ckpt_path: this run is finished, expected fewer than updates.rollout_steps="
                f"{self.update.rollout_steps} rollout steps done, found {done}. To go on, raise updates.rollout_steps."
            )
        self.rollout_step = done


_VALIDATION_METRICS = (
    "reward",
    "format",
    "name",
    "parameter_names",
    "parameter_values",
    "correctness",
    "exact_match",
    "tokens",
    "truncated",
)
