"""A training module's sampling side: an engine that follows its weights, and validation by greedy completions."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from src.algorithm.experience import PromptGroup
from src.data.rendering import RenderedPrompt
from src.models.loading.lora import merged_named_tensors
from src.models.loading.sharding import reshard
from src.models.policy import Policy
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams
from src.rollout.probe import check_gap, probe_group, probe_params
from src.rollout.splitting import GuardedEngine
from src.training.settings import UpdateSettings
from src.training.step import announce

log = logging.getLogger(__name__)

_METRICS = (
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


class SamplingModule(LightningModule, ABC):
    """A module that samples from its weights, and validates by that.

    Args:
        policy: what is trained.
        engine: samples from it.
        collector: samples with the engine and scores.
        sampling: for training; validation takes one greedy completion a prompt.
        update: how many rollout steps there are, and how the engine is probed.
        seed: of sampling.

    Attributes:
        rollout_step: rollout steps done; also the version of the weights.
        engine_gap: largest |engine - trainer| log-probability of the last probe, in nats; None without one.
        validated: (rollout step, metrics) of the last validation; metrics are empty before the first.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        collector: Collector,
        sampling: SamplingParams,
        update: UpdateSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.engine = engine
        self.collector = collector
        self.sampling = sampling
        self.update = update
        self.seed = seed
        self.rollout_step = 0
        self.engine_gap: float | None = None
        self.validated: tuple[int, dict[str, float]] = (-1, {})
        self._val_metrics: dict[str, MeanMetric] = {}

    @property
    def progress(self) -> float:
        """Fraction of the run's rollout steps that is done, in [0, 1]."""
        return self.rollout_step / self.update.rollout_steps

    @abstractmethod
    def _score(self, groups: list[PromptGroup], *, temperature: float | None = None) -> list[GroupScores]:
        """What the policy says about each group's tokens."""

    # The engine's weights

    def on_train_start(self) -> None:
        """The engine starts from the policy's weights, which a checkpoint may have just set."""
        self._sync_engine()

    def on_train_end(self) -> None:
        """Nothing is sampled after training."""
        self.engine.close()

    def _sync_engine(self) -> None:
        """Hand the weights to the engine, and see that it computes with them."""
        reshard(self.policy)
        self.engine.update_weights(merged_named_tensors(self.policy.model), self.rollout_step)
        if self.engine.copies_weights and self.update.probe_tokens:
            self._probe_engine()

    def _probe_engine(self) -> None:
        """Compare greedy log-probabilities of one fixed prompt with the trainer's; see `rollout.probe`."""
        prompt = self.trainer.datamodule.probe_prompt.prompt_ids.cpu()  # type: ignore[attr-defined]
        ((completion,),) = self.engine.generate([prompt], probe_params(self.sampling, self.update.probe_tokens), [0])
        group = probe_group(prompt, completion).to(self.device)
        with self.trainer.precision_plugin.forward_context():
            (scores,) = self._score([group], temperature=1.0)
        gap = (scores.logprobs - group.rollout_logprobs).abs().max()
        self.engine_gap = float(self.trainer.strategy.reduce(gap, reduce_op="max"))
        check_gap(self.engine_gap, self.rollout_step, self._compute_dtype(), self.update.probe_tolerance)

    def _compute_dtype(self) -> torch.dtype:
        """In which the policy's forwards run."""
        halved = str(self.trainer.precision).startswith("bf16")
        return torch.bfloat16 if halved else next(self.policy.parameters()).dtype

    # Sampling

    def _sampled(
        self, prompts: Sequence[RenderedPrompt], params: SamplingParams, *, together: bool
    ) -> list[ScoredGroup]:
        """Scored completions. A `GuardedEngine` that fails gets the weights anew and one more try, then it propagates.

        All ranks gather the weights, so on several ranks that needs all of them here.

        Args:
            prompts: of this rank.
            params: how to sample.
            together: whether every rank calls this equally often.
        """
        collect = partial(self.collector.collect, prompts, params, self.seed, self.rollout_step, self.progress)
        engine = self.engine
        if not isinstance(engine, GuardedEngine) or not (together or self.trainer.world_size == 1):
            return collect()
        before = engine.max_completions
        groups, fault = _tried(engine, collect)
        shrunk = 0 if engine.max_completions == before else engine.max_completions or 0
        found = torch.tensor([int(fault is not None), shrunk], device=self.device)
        failed, shrunk = (int(x) for x in self._max_over_ranks(found))
        if shrunk:
            announce(self.trainer, "out_of_memory", where="rollout", max_completions=shrunk)
        if failed:
            fault = fault or "on another rank"
            log.warning("Rollout step %d: the engine failed (%s): it gets the weights again.", self.rollout_step, fault)
            announce(self.trainer, "engine_fault", error=fault)
            self._sync_engine()
        return collect() if groups is None else groups

    # Validation

    def on_validation_epoch_start(self) -> None:
        """New means for every split, the same on every rank."""
        if self.engine.weights_version != self.rollout_step:
            self._sync_engine()
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        self._val_metrics = {}
        for name in datamodule.val_names:
            tags = sorted({tag for prompt in datamodule.prompts(name) for tag in prompt.example.tags})
            for key in (*_METRICS, *(f"exact_match/{tag}" for tag in tags)):
                metric = MeanMetric().to(self.device)
                metric.update(0.0, weight=0.0)  # a rank without such a prompt takes part in the mean all the same
                self._val_metrics[f"{name}/{key}"] = metric

    def validation_step(self, batch: list[RenderedPrompt], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Greedy completions of a batch of one split."""
        name = self.trainer.datamodule.val_names[dataloader_idx]  # type: ignore[attr-defined]
        greedy = replace(self.sampling, n=1, temperature=0.0, top_p=1.0, top_k=0)
        for group in self._sampled(batch, greedy, together=False):
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
        self.log_dict({**values, "step": float(self.rollout_step)}, sync_dist=True)  # equal on all ranks already

    # Over ranks

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="sum"))

    def _max_over_ranks(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="max"))


def _tried(
    engine: GuardedEngine, collect: Callable[[], list[ScoredGroup]]
) -> tuple[list[ScoredGroup] | None, str | None]:
    """The groups, or how the engine failed; what fails in scoring propagates."""
    try:
        return collect(), None
    except (RuntimeError, OSError) as error:
        if error is not engine.fault:
            raise
        engine.fault = None  # its traceback holds tensors
        return None, f"{type(error).__name__}: {error}"
