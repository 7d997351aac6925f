"""Validation of a training module: greedy completions of held-out prompts, scored as training's are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace

from lightning import LightningModule
from torchmetrics import MeanMetric

from src.data.rendering import RenderedPrompt
from src.rollout.collect import Collector
from src.rollout.engine import RolloutEngine, SamplingParams

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


class ValidatingModule(LightningModule, ABC):
    """A module that samples from its weights, and validates by that.

    Args:
        engine: samples.
        collector: samples with the engine and scores.
        sampling: for training; validation takes one greedy completion a prompt.
        seed: of sampling.

    Attributes:
        rollout_step: rollout steps done.
        validated: (rollout step, metrics) of the last validation; metrics are empty before the first.
    """

    rollout_step: int

    def __init__(self, engine: RolloutEngine, collector: Collector, sampling: SamplingParams, seed: int) -> None:
        super().__init__()
        self.engine = engine
        self.collector = collector
        self.sampling = sampling
        self.seed = seed
        self.validated: tuple[int, dict[str, float]] = (-1, {})
        self._val_metrics: dict[str, MeanMetric] = {}

    @property
    @abstractmethod
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1]."""

    @abstractmethod
    def _sync_engine(self) -> None:
        """Hand the weights to the engine."""

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
        self.log_dict({**values, "step": float(self.rollout_step)}, sync_dist=True)  # equal on all ranks already
