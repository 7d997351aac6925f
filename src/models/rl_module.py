"""The LightningModule of ResT, GRPO and their kin: the order of the steps of a rollout step, and nothing else.

One `training_step` is one rollout step: sample, reward, score with the trainer, weigh tokens, then minibatches of
clipped optimizer steps, then the weights go to the engine. Optimisation is manual. `rollout_step` counts these and
drives curriculum, schedules and evaluation; Lightning's `global_step` counts optimizer steps.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from src.algorithm.advantages import zero_variance
from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.algorithm.packing import pack, split_by_tokens
from src.algorithm.policy_loss import LossCounts, LossInputs, policy_loss
from src.algorithm.region_weights import token_weights
from src.callbacks.base import RolloutCallback, RolloutStep
from src.data.rendering import RenderedPrompt
from src.models.optimizers import OptimizerSettings, build_optimizer
from src.models.policy import Policy
from src.models.rl_settings import AlgorithmSettings, UpdateSettings
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams


class NonFiniteError(FloatingPointError):
    """Loss or gradient is NaN or infinite; no weight has been changed by it."""


class RLModule(LightningModule):
    """Trains a policy on its own scored completions.

    Args:
        policy: what is trained.
        engine: samples from it.
        collector: samples with the engine and scores.
        algorithm: the method.
        update: minibatches and bounds.
        optimizer: AdamW and schedule.
        sampling: for training, `n` completions a prompt.
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
        algorithm: AlgorithmSettings,
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

    # The rollout step

    def training_step(self, batch: list[RenderedPrompt], batch_idx: int) -> None:
        """One rollout step; see the module's docstring."""
        started = time.monotonic()
        scored = self.collector.collect(batch, self.sampling, self.seed, self.rollout_step, self.progress)
        sampled = time.monotonic()
        groups = [
            group.to_experience(self.algorithm.estimator, self.algorithm.advantage_delta).to(self.device)
            for group in scored
        ]
        groups, entropies = self._score(groups)
        step = RolloutStep(self.rollout_step, scored, groups, entropies, self._rollout_metrics(scored, groups))
        for callback in self._rollout_callbacks():
            callback.on_rollout(self.trainer, self, step)
        step.groups = [self._weigh(group) for group in groups]
        scored_at = time.monotonic()
        step.metrics |= self._update(step.groups)
        self.rollout_step += 1
        self._sync_engine()
        step.metrics |= {
            "time/rollout": sampled - started,
            "time/score": scored_at - sampled,
            "time/update": time.monotonic() - scored_at,
        }
        for callback in self._rollout_callbacks():
            callback.on_rollout_step_end(self.trainer, self, step)
        self._log_step(step.metrics)
        if self.rollout_step >= self.update.rollout_steps:
            self.trainer.should_stop = True

    @torch.no_grad()
    def _score(self, groups: list[PromptGroup]) -> tuple[list[PromptGroup], list[Tensor]]:
        """The groups with the trainer's log-probabilities, and the entropies [N] of each."""
        scored: dict[int, PromptGroup] = {}
        entropies: dict[int, Tensor] = {}
        index_of = {id(group): index for index, group in enumerate(groups)}
        for row in self._rows(groups):
            scores = self.policy(pack(row), temperature=self._temperature)
            sizes = [len(group.token_ids) for group in row]
            for group, logprobs, entropy in zip(
                row, scores.logprobs.split(sizes), scores.entropies.split(sizes), strict=True
            ):
                scored[index_of[id(group)]] = replace(group, old_logprobs=logprobs)
                entropies[index_of[id(group)]] = entropy
        order = range(len(groups))
        return [scored[i] for i in order], [entropies[i] for i in order]

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
        for row in self._rows(minibatch):
            scores = self.policy(pack(row), temperature=self._temperature)
            output = policy_loss(LossInputs.of(row, scores.logprobs, scores.entropies), self.algorithm.loss, counts)
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

    def _rows(self, groups: list[PromptGroup]) -> list[list[PromptGroup]]:
        """Groups split into packed rows, as many on every rank."""
        budget = self.update.max_row_tokens
        rows = split_by_tokens(groups, budget)
        if self.trainer.world_size == 1:
            return rows
        count = torch.tensor(len(rows), device=self.device)
        needed = int(self.trainer.strategy.reduce(count, reduce_op="max"))
        return rows if needed == len(rows) else split_by_tokens(groups, budget, min_rows=needed)

    @property
    def _temperature(self) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return self.sampling.temperature or 1.0

    def _sync_engine(self) -> None:
        self.engine.update_weights(self._named_weights(), self.rollout_step)

    def _named_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.policy.model.state_dict().items()

    # Metrics

    def _rollout_metrics(self, scored: Sequence[ScoredGroup], groups: list[PromptGroup]) -> dict[str, float]:
        values: dict[str, list[float]] = defaultdict(list)
        for group in scored:
            for item in group.completions:
                for key, value in {"total": item.reward.total, **item.reward.parts.metrics()}.items():
                    values[f"reward/{key}"].append(value)
                values["response/tokens"].append(float(len(item.completion.token_ids)))
                values["response/truncated"].append(float(item.completion.finish_reason == "length"))
        values["group/zero_variance"] = [float(zero_variance(group.rewards)) for group in groups]
        values["group/reward_std"] = [float(group.rewards.std(correction=0)) for group in groups]
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
        names = sorted(metrics.maxima)
        maxima = self.trainer.strategy.reduce(torch.stack([metrics.maxima[n] for n in names]), reduce_op="max")
        return LossMetrics(dict(zip(keys, sums, strict=True)), dict(zip(names, cast(Tensor, maxima), strict=True)))

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
