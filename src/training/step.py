"""The moments of a run that callbacks can join, beside Lightning's own hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from lightning import Callback, Trainer
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.rollout.collect import ScoredGroup

if TYPE_CHECKING:
    from src.training.policy_module import PolicyModule


@dataclass(slots=True)
class RolloutStep:
    """What one rollout step did on this rank.

    Attributes:
        index: the rollout step, from 0.
        scored: prompts, completions and rewards.
        groups: the same as tensors; token weights are set between the two hooks.
        entropies: for each group, float32 [N], entropy in nats at each sampled token, before the update. Empty in
            `on_rollout` if no callback `needs_scores`: the update's first forward makes them.
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


class RolloutCallback(Callback):
    """A Lightning callback that also sees inside a rollout step."""

    def needs_scores(self, module: PolicyModule) -> bool:
        """Whether `on_rollout` reads the step's entropies or old log-probabilities, at the price of a forward."""
        return False

    def on_rollout(self, trainer: Trainer, module: PolicyModule, step: RolloutStep) -> None:
        """After sampling and rewards; before token weights and the first update."""

    def on_rollout_step_end(self, trainer: Trainer, module: PolicyModule, step: RolloutStep) -> None:
        """After the last update, before `step.metrics` is logged."""

    def on_benchmark(self, trainer: Trainer, module: PolicyModule, scores: dict[str, float]) -> None:
        """After an evaluation of the weights that `module.rollout_step` steps have made; keys `<benchmark>/<score>`."""

    def on_event(
        self, trainer: Trainer, module: PolicyModule, event: str, values: Mapping[str, str | float | None]
    ) -> None:
        """Something out of the ordinary, on all ranks alike: a fault that the run survives, an alarm (`announce`)."""


def announce(trainer: Trainer, event: str, **values: str | float | None) -> None:
    """Tell all callbacks of an event; `docs/troubleshooting.md` lists what events there are."""
    module = cast("PolicyModule", trainer.lightning_module)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RolloutCallback):
            callback.on_event(trainer, module, event, values)
