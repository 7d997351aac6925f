"""The LightningModule: `training_step` is the rollout step, from prompts to weights in the engine.

It holds objects and gives them their order: `sampler` (an engine that follows the weights), `objective` (RL or SFT),
`scorer` (forwards over packed rows), `updater` (clipped optimizer steps) and `ranks` (processes that train together).
Optimisation is manual. `rollout_step` counts these steps and drives curriculum, schedules and evaluation; Lightning's
`global_step` counts optimizer steps.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionFactors, batch_token_weights
from src.config.rules import VALIDATION_METRICS
from src.data.rendering import RenderedPrompt
from src.errors import ConfigError
from src.models.loading.sharding import place_policy
from src.models.loading.weight_source import WeightSource
from src.models.policy import Policy
from src.rollout.collect import GroupCollector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams
from src.runs.random_states import random_states, restore_random_states
from src.training.objective import Objective
from src.training.optimizers import OptimizerSettings, build_optimizer
from src.training.ranks import Ranks
from src.training.reference import FrozenStart
from src.training.sampler import Probe, Sampler
from src.training.scorer import Scorer
from src.training.settings import OldLogprobs, UpdateSettings
from src.training.step import RolloutStep, announce, rollout_callbacks
from src.training.updater import Updater


class TrainingModule(LightningModule):
    """Trains a policy on weighted prompt groups.

    Args:
        policy: what is trained.
        engine: samples from it.
        collector: samples with the engine and scores.
        objective: where groups come from, and the loss.
        updates: minibatches and bounds.
        optimizer: AdamW and its schedule.
        sampling: for training, `n` completions a prompt; validation is greedy.
        prompts_per_step: prompts of a rollout step, over all ranks.
        ranks: that train together.
        dtype: in which the policy's forwards run.
        seed: of sampling.
        weights: of a policy that was left on the meta device for its strategy to shard.
        folder: of the run; minibatches that are not finite are saved there.

    Attributes:
        rollout_step: rollout steps done; also the version of the weights.
        region_factors: weight of each region before normalisation; callbacks return new ones.
        validated: (rollout step, metrics) of the last validation; metrics are empty before the first.
        started: metrics of the validation before the first rollout step.
        ends_when_finished: whether a checkpoint of a finished run is taken, to end at once, rather than refused.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        collector: GroupCollector,
        objective: Objective,
        updates: UpdateSettings,
        optimizer: OptimizerSettings,
        sampling: SamplingParams,
        *,
        prompts_per_step: int,
        ranks: Ranks,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        weights: WeightSource | None = None,
        folder: Path = Path(),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.objective, self.updates, self.ranks = policy.train(), objective, updates, ranks
        self.weights = weights
        self.reference: FrozenStart | None = None
        probe = Probe(updates.probe_tokens, updates.probe_mean_tolerance, updates.probe_tolerance, dtype)
        self.sampler = Sampler(engine, collector, sampling, updates.rollout_steps, seed, ranks, probe, self._announce)
        self.scorer = Scorer(policy, ranks, updates.max_row_tokens, self._announce)
        self.updater = Updater(self.scorer, _LightningOptimization(self), updates, ranks, self._announce, folder)
        self.rollout_step = 0
        self.region_factors = objective.weighting.factors_at(objective.weighting.factors, 0.0)
        self.validated: tuple[int, dict[str, float]] = (-1, {})
        self.started: Mapping[str, float] = MappingProxyType({})
        self.ends_when_finished = False
        self._optimizer_settings, self._prompts_per_step = optimizer, prompts_per_step
        self._val_metrics: dict[str, MeanMetric] = {}
        self._random_states: Sequence[dict[str, Any]] = ()

    @property
    def progress(self) -> float:
        """Fraction of the run's rollout steps that is done, in [0, 1]."""
        return self.rollout_step / self.updates.rollout_steps

    @property
    def temperature(self) -> float:
        """What logits are divided by in the loss."""
        return self.objective.temperature(self.sampler)

    # The rollout step

    def training_step(self, batch: Sequence[RenderedPrompt], batch_idx: int) -> None:
        """One rollout step: sample or demonstrate, score, weigh tokens, update, hand the weights to the engine."""
        times = [time.monotonic()]
        costs = [len(prompt.prompt_ids) + self.sampler.longest for prompt in batch]
        mine, minibatches = self.ranks.share(costs, self.updates.prompts_per_minibatch)
        scored, resampled = self.objective.groups([batch[index] for index in mine], self.sampler)
        times.append(time.monotonic())
        groups = [self.objective.experience(group) for group in scored]
        skip = self.updater.zero_advantage(self.objective) == "skip"
        shared, minibatches = self.ranks.redistribute(
            list(zip(scored, groups, strict=True)),
            [self.scorer.budget.cost(group.chosen(group.with_advantage) if skip else group) for group in groups],
            minibatches,
            self.scorer.budget.max_tokens,
        )
        step = RolloutStep(
            self.rollout_step,
            [group for group, _ in shared],
            [tensors.to(self.device) for _, tensors in shared],
            metrics=self._rollout_metrics(scored, groups, resampled),
            minibatches=minibatches,
        )
        all_of_them = any(callback.needs_scores(self) for callback in rollout_callbacks(self.trainer))
        source = "score" if all_of_them else self._old_logprobs
        known = self.scorer.before_update(step, self.objective, self.reference, source, self.temperature, skip=skip)
        for callback in rollout_callbacks(self.trainer):
            callback.on_rollout(self.trainer, self, step)
            self.region_factors = callback.region_factors(self, step) or self.region_factors
        self.sampler.engine.release_memory()
        step.groups = self._weigh(step.groups)
        times.append(time.monotonic())
        step.groups, metrics, missing = self.updater.run(
            step.groups,
            minibatches,
            len(known),
            self.objective,
            temperature=self.temperature,
            rollout_step=self.rollout_step,
        )
        step.metrics |= metrics
        step.entropies = [scores.entropies for scores in (*missing, *known)]
        self.rollout_step += 1
        times.append(time.monotonic())
        self._sync_engine()
        times.append(time.monotonic())
        step.metrics |= self._step_metrics(times)
        for callback in rollout_callbacks(self.trainer):
            callback.on_rollout_step_end(self.trainer, self, step)
        self._log_step(step.metrics)
        if self.rollout_step >= self.updates.rollout_steps:
            self.trainer.should_stop = True

    @property
    def _old_logprobs(self) -> OldLogprobs:
        """`updates.old_logprobs`; in place of `auto`, what it stands for now."""
        if self.updates.old_logprobs != "auto":
            return self.updates.old_logprobs
        return "sampler" if self.objective.samples and self.sampler.agrees else "update"

    def _weigh(self, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
        """The groups with token weights: their regions', times what a token counts before these (1 but for prompts)."""
        weighting = self.objective.weighting
        weights = batch_token_weights(
            self.region_factors,
            [group.regions for group in groups],
            [group.lengths for group in groups],
            normalisation=weighting.normalisation,
            delta=weighting.delta,
        )
        return [replace(group, weights=w * group.weights) for group, w in zip(groups, weights, strict=True)]

    def _sync_engine(self) -> None:
        """Hand the weights to the engine; see `Sampler.sync`."""
        self.sampler.sync(self.policy, self.rollout_step, lambda: self._datamodule.probe_prompt, self._probe_logprobs)

    def _probe_logprobs(self, group: PromptGroup) -> Tensor:
        """The policy's unscaled log-probabilities of a group's tokens, in the precision of training."""
        with self.trainer.precision_plugin.forward_context():
            (scores,) = self.scorer.score([group.to(self.device)], 1.0)
        return scores.logprobs

    def _announce(self, event: str, **values: str | float | None) -> None:
        announce(self.trainer, event, **values)

    # Metrics

    def _rollout_metrics(
        self, scored: Sequence[ScoredGroup], groups: Sequence[PromptGroup], resampled: int
    ) -> dict[str, float]:
        """Means over completions and groups of all ranks."""
        values = defaultdict[str, list[float]](list, {f"reward/{name}": [] for name in self.sampler.collector.scores})
        for item in (item for group in scored for item in group.completions):
            for key, value in item.metrics().items():
                values[key].append(value)
        values |= self.objective.metrics(groups, resampled)
        keys = sorted(values)
        sums = torch.tensor([[sum(values[key]), len(values[key])] for key in keys], dtype=torch.float64)
        reduced = self.ranks.sum(sums.to(self.device))
        return {key: float(total / count) for key, (total, count) in zip(keys, reduced, strict=True) if count}

    def _step_metrics(self, times: Sequence[float]) -> dict[str, float]:
        """Seconds of each part of the step, and what the engine's probe found."""
        parts = {"score": 1, "update": 2, "sync": 3} | ({"rollout": 0} if self.objective.samples else {})
        metrics = {f"time/{name}": times[index + 1] - times[index] for name, index in parts.items()}
        return metrics | self.sampler.probed

    def _log_step(self, metrics: dict[str, float]) -> None:
        """Log against the rollout step (Lightning takes the x-axis from a metric named `step`)."""
        self.log_dict({**metrics, "step": float(self.rollout_step)}, batch_size=1)
        shown = {
            "reward": metrics["reward/total"],
            "exact": metrics["reward/exact_match"],
            "entropy": metrics["train/entropy"],
        }
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=1)

    # Validation: greedy completions

    def on_validation_epoch_start(self) -> None:
        """New means for every split, the same on every rank."""
        if self.sampler.engine.weights_version != self.rollout_step:
            self._sync_engine()
        self._val_metrics = {}
        for name in self._datamodule.val_names:
            tags = sorted({tag for prompt in self._datamodule.prompts(name) for tag in prompt.example.tags})
            found = self.sampler.collector
            for key in (*VALIDATION_METRICS, *found.scores, *found.counts, *(f"exact_match/{tag}" for tag in tags)):
                metric = MeanMetric().to(self.device)
                metric.update(0.0, weight=0.0)  # a rank without such a prompt takes part in the mean all the same
                self._val_metrics[f"{name}/{key}"] = metric

    def validation_step(self, batch: Sequence[RenderedPrompt], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Greedy completions of a batch of one split."""
        name = self._datamodule.val_names[dataloader_idx]
        for group in self.sampler.greedy(batch):
            (item,) = group.completions
            values = {key.partition("/")[2]: value for key, value in item.metrics().items()}
            values["reward"] = values.pop("total")
            values |= {f"exact_match/{tag}": values["exact_match"] for tag in group.prompt.example.tags}
            for key, value in values.items():
                self._val_metrics[f"{name}/{key}"].update(value)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all prompts of all ranks."""
        means = {key: float(metric.compute()) for key, metric in self._val_metrics.items()}
        values = {key: mean for key, mean in means.items() if math.isfinite(mean)}  # no prompt with this tag was seen
        self.validated = (self.rollout_step, values)
        self.log_dict({**values, "step": float(self.rollout_step)}, sync_dist=True)  # equal on all ranks already

    @property
    def _datamodule(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # Lightning: set-up

    def setup(self, stage: str) -> None:
        """Check what is known now that there are ranks.

        Raises:
            ValueError: fewer prompts in a rollout step than ranks.
        """
        ranks = self.trainer.world_size
        if self._prompts_per_step < ranks:
            raise ConfigError(
                f"data.prompts_per_step: expected at least one prompt for each of the {ranks} ranks, found "
                f"{self._prompts_per_step}. Raise it, or lower trainer.devices."
            )

    def configure_model(self) -> None:
        """Shard the policy under a `ShardedStrategy`, and freeze the start if the loss wants a reference.

        That is after a warm start and before a checkpoint.
        """
        place_policy(self, self.trainer, self.policy, self.weights)
        if self.objective.needs_reference and self.reference is None:
            self.reference = FrozenStart(self.policy)

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule counts optimizer steps."""
        per_rollout = -(-self._prompts_per_step // self.updates.prompts_per_minibatch) * self.updates.passes
        total = self.updates.rollout_steps * per_rollout
        optimizer, schedule = build_optimizer(self.policy.named_parameters(), self._optimizer_settings, total)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """The engine starts from the policy's weights, which a checkpoint may have just set."""
        self._sync_engine()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Put the generators where the checkpoint had them, now that all that may draw numbers is set up.

        On more ranks than before, the others keep the states that they were seeded with.
        """
        if self.ranks.rank < len(self._random_states):
            restore_random_states(self._random_states[self.ranks.rank])
        self._random_states = ()

    def on_train_end(self) -> None:
        """Nothing is sampled after training."""
        self.sampler.engine.close()
        self.sampler.collector.close()

    # Checkpoints: what training changes, the rollout step, the last scores, and all random states

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What training changes: with adapters, only these; the frozen base comes from where the policy came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        frozen = tuple(self._frozen())
        return {name: value for name, value in state.items() if not name.startswith(frozen)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take such a state; names that are frozen may be missing.

        Raises:
            ValueError: other names are missing, or unknown.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        frozen = set(self._frozen())
        missing = [name for name in result.missing_keys if name not in frozen]
        if strict and (missing or result.unexpected_keys):
            differs = [*missing, *result.unexpected_keys]
            of_reference = all(name.startswith("reference.") for name in differs)
            raise ValueError(
                f"ckpt_path: the checkpoint does not fit this run: missing {missing[:3] or 'nothing'}, unexpected "
                f"{result.unexpected_keys[:3] or 'nothing'}. Resume with "
                + ("algorithm.loss.kl_coef" if of_reference else "the policy and policy.lora")
                + " of its run."
            )
        return result

    def _frozen(self) -> list[str]:
        names = self.policy.named_parameters(remove_duplicate=False)
        return [f"policy.{name}" for name, parameter in names if not parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run goes on from, besides weights and optimizer."""
        step, metrics = self.validated
        checkpoint["rollout_step"] = self.rollout_step
        checkpoint["region_factors"] = asdict(self.region_factors)
        checkpoint["scores"] = {"started": dict(self.started), "validated": [step, metrics]}
        checkpoint["random_states"] = self.ranks.gather(random_states())
        checkpoint["guard"] = self.updater.guard.state_dict()
        checkpoint["row_budget"] = self.scorer.budget.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the next rollout step.

        Raises:
            ValueError: the checkpoint is of no training run, or of one that is finished.
        """
        if "rollout_step" not in checkpoint:
            raise ValueError(
                "ckpt_path: expected a checkpoint of a training run with the key 'rollout_step', found none. To start "
                "from a model's weights use policy.path."
            )
        done = int(checkpoint["rollout_step"])
        finished = done >= self.updates.rollout_steps
        if finished and not self.ends_when_finished:
            raise ValueError(
                "ckpt_path: this run is finished, expected fewer than updates.rollout_steps="
                f"{self.updates.rollout_steps} rollout steps done, found {done}. To go on, raise updates.rollout_steps."
            )
        self.trainer.should_stop = finished
        self.rollout_step = done
        if "scores" in checkpoint:  # a version before had neither
            step, metrics = checkpoint["scores"]["validated"]
            self.validated, self.started = (int(step), dict(metrics)), dict(checkpoint["scores"]["started"])
            self._random_states = checkpoint["random_states"]
        if "region_factors" in checkpoint:
            self.region_factors = RegionFactors(**checkpoint["region_factors"])
        if "guard" in checkpoint:
            self.updater.guard.load_state_dict(checkpoint["guard"])
            self.scorer.budget.load_state_dict(checkpoint["row_budget"])


class _LightningOptimization:
    """`Optimization` through Lightning: its precision, its strategy, its count of optimizer steps."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module

    @property
    def learning_rate(self) -> float:
        return float(self._module.optimizers().optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]

    @property
    def replicated(self) -> bool:
        return isinstance(self._module.trainer.model, DistributedDataParallel)

    def unreduced(self) -> AbstractContextManager[None]:
        model = self._module.trainer.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._module.manual_backward(loss)

    def step(self) -> None:
        cast(torch.optim.Optimizer, self._module.optimizers()).step()
        self._module.lr_schedulers().step()  # type: ignore[union-attr]

    def zero_grad(self) -> None:
        cast(torch.optim.Optimizer, self._module.optimizers()).zero_grad()
