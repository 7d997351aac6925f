"""What every training module shares: the parts of a rollout step after sampling, callbacks, and logging.

A module's `training_step` is one rollout step: it gets prompt groups from somewhere (`rl_module`: sampled;
`sft_module`: demonstrated), scores those that the update does not, and hands them to `_learn`. Optimisation is manual.
`rollout_step` counts these steps and drives curriculum, schedules and evaluation; Lightning's `global_step` counts
optimizer steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import batch_token_weights
from src.models.loading.sharding import place_policy
from src.models.loading.weight_source import WeightSource
from src.models.policy import Policy
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams
from src.training.optimizers import OptimizerSettings, build_optimizer
from src.training.resuming import ResumableModule
from src.training.sampling_module import GroupScores
from src.training.settings import AlgorithmSettings, SupervisedSettings, UpdateSettings
from src.training.step import RolloutCallback, RolloutStep
from src.training.update_module import UpdateModule


class PolicyModule(UpdateModule, ResumableModule):
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

    # The parts of a rollout step

    def _learn(self, step: RolloutStep, scores: list[GroupScores], scored_from: float) -> None:
        """What follows on sampled groups: callbacks, token weights, the update, the engine's weights, the log.

        Args:
            step: its groups without token weights, and no entropies.
            scores: of the last groups; of the others the first forward of their update makes them.
            scored_from: `time.monotonic()` when scoring began.
        """
        for index, known in enumerate(scores, len(step.groups) - len(scores)):
            step.groups[index] = replace(step.groups[index], old_logprobs=known.logprobs)
        if len(scores) == len(step.groups):
            step.entropies = [s.entropies for s in scores]
        for callback in self._rollout_callbacks():
            callback.on_rollout(self.trainer, self, step)
        self.engine.release_memory()
        step.groups = self._weigh(step.groups)
        scored_at = time.monotonic()
        metrics, missing = self._update(step.groups, step.minibatches, len(scores))
        step.metrics |= metrics
        step.entropies = [s.entropies for s in (*missing, *scores)]
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

    def _weigh(self, groups: list[PromptGroup]) -> list[PromptGroup]:
        weighting = self.algorithm.weighting
        weights = batch_token_weights(
            self.region_factors,
            [group.regions for group in groups],
            [group.lengths for group in groups],
            normalisation=weighting.normalisation,
            delta=weighting.delta,
        )
        return [replace(group, weights=w) for group, w in zip(groups, weights, strict=True)]

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

    def _log_step(self, metrics: dict[str, float]) -> None:
        """Log against the rollout step (Lightning takes the x-axis from a metric named `step`)."""
        self.log_dict({**metrics, "step": float(self.rollout_step)}, batch_size=1)
        shown = {
            "reward": metrics["reward/total"],
            "exact": metrics["reward/exact_match"],
            "entropy": metrics["train/entropy"],
        }
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=1)

    def _needs_scores(self) -> bool:
        """Whether a callback reads what the policy says about the groups before the update."""
        return any(callback.needs_scores(self) for callback in self._rollout_callbacks())

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
