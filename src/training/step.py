"""A rollout step, and the moments of it that callbacks can join, beside Lightning's own hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from lightning import Callback, Trainer
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionFactors
from src.models.policy import Policy
from src.rollout.collect import ScoredGroup
from src.training.objective import Objective
from src.training.ranks import Ranks
from src.training.sampler import Sampler
from src.training.settings import UpdateSettings


@dataclass(slots=True)
class RolloutStep:
    """What one rollout step did on this rank.

    Attributes:
        index: the rollout step, from 0.
        scored: prompts, completions and rewards.
        groups: the same as tensors; token weights are set between the two hooks.
        entropies: for each group, float32 [N], entropy in nats at each sampled token, before the update. Empty in
            `on_rollout` if no callback `needs_scores`: the update's first forward makes them. NaN where the update has
            left a completion out and the sampler does not tell (`updates.zero_advantage=skip`).
        metrics: numbers to log, means over all ranks; callbacks add theirs.
        gradient_moments: for each group, float32 [N], `LastLayerGradients.second_moments` at each sampled token, before
            the update; None unless the weighting `needs_moments`.
        minibatches: how many of this rank's groups, in their order, are in each minibatch.
    """

    index: int
    scored: Sequence[ScoredGroup]
    groups: list[PromptGroup]
    entropies: list[Tensor] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    gradient_moments: list[Tensor] | None = None
    minibatches: Sequence[int] = ()


class Training(Protocol):
    """What callbacks see of the module that trains (`module.TrainingModule`).

    Attributes:
        policy: what is trained.
        sampler: samples from it.
        objective: the method.
        updates: minibatches and bounds.
        ranks: that train together.
        rollout_step: rollout steps done; also the version of the weights.
        region_factors: weight of each region before normalisation.
        validated: (rollout step, metrics) of the last validation.
    """

    policy: Policy
    sampler: Sampler
    objective: Objective
    updates: UpdateSettings
    ranks: Ranks
    rollout_step: int
    region_factors: RegionFactors
    validated: tuple[int, dict[str, float]]

    @property
    def device(self) -> torch.device:
        """Of the policy."""
        ...

    @property
    def progress(self) -> float:
        """Fraction of the run's rollout steps that is done, in [0, 1]."""
        ...

    @property
    def temperature(self) -> float:
        """What logits are divided by in the loss."""
        ...

    def log_dict(self, dictionary: Mapping[str, float], *, logger: bool | None = None, batch_size: int = 1) -> None:
        """Lightning's."""


class RolloutCallback(Callback):
    """A Lightning callback that also sees inside a rollout step."""

    def prepare(self, *, anew: bool) -> None:
        """Before anything is loaded; what cannot work is refused here.

        Args:
            anew: what a run without a checkpoint has left in the run folder will be written again.
        """

    def needs_scores(self, module: Training) -> bool:
        """Whether `on_rollout` reads the step's entropies or old log-probabilities, at the price of a forward."""
        return False

    def on_rollout(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """After sampling and rewards; before token weights and the first update."""

    def region_factors(self, module: Training, step: RolloutStep) -> RegionFactors | None:
        """The weight of each region from this rollout step on; None leaves them as they are. After `on_rollout`."""
        return None

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """After the last update, before `step.metrics` is logged."""

    def on_benchmark(self, trainer: Trainer, module: Training, scores: dict[str, float]) -> None:
        """After an evaluation of the weights that `module.rollout_step` steps have made; keys `<benchmark>/<score>`."""

    def on_event(
        self, trainer: Trainer, module: Training, event: str, values: Mapping[str, str | float | None]
    ) -> None:
        """Something out of the ordinary, on all ranks alike: a fault that the run survives, an alarm (`announce`)."""

    def scores(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """What this callback has measured at the start and at the end of the run, for its summary."""
        return {}, {}


def rollout_callbacks(trainer: Trainer) -> list[RolloutCallback]:
    """Those of the trainer's callbacks that see inside a rollout step."""
    return [c for c in trainer.callbacks if isinstance(c, RolloutCallback)]  # type: ignore[attr-defined]


def announce(trainer: Trainer, event: str, **values: str | float | None) -> None:
    """Tell all callbacks of an event; `docs/troubleshooting.md` lists what events there are."""
    module = cast(Training, trainer.lightning_module)
    for callback in rollout_callbacks(trainer):
        callback.on_event(trainer, module, event, values)
