"""The paper's variance theory measured on the rollouts of a training; off unless `callbacks=variance`."""

from __future__ import annotations

import logging
import time
from typing import Literal, NamedTuple, cast

import torch
from lightning import Trainer
from torch import Tensor

from src.algorithm.advantages import zero_variance
from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.algorithm.region_weights import region_means
from src.errors import ConfigError
from src.models.head.gradients import LastLayerGradients
from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training
from src.wings.theory.gradient_variance import (
    estimator_moments,
    moment_metrics,
    moment_sums,
    normalised,
    optimal_weights,
    surrogate_moments,
    variance_bound,
)

log = logging.getLogger(__name__)

_WEIGHTS = ("uniform", "trained", "optimal_region", "optimal_token")
_COLUMNS = ("second_moment", "variance", "signal", "bound", "expected_second_moment")


class _Measurement(NamedTuple):
    """What is kept of a group between the hooks, on the CPU."""

    position: int  # in step.groups
    gram: Tensor  # [N, N]
    surrogate: Tensor  # [N], the theorem's β_t
    expected: Tensor  # [N], with 1 - Σp² in place of 1 - e^-H


class VarianceMeter(RolloutCallback):
    """Logs second moments of the last layer's gradient by region, and the estimator's variance under several weights.

    What the numbers mean, and what a lower variance does not show, is said in `wings.theory.gradient_variance`.

    - `moment/<region>/…` over the tokens of the measured groups: see `moment_metrics`;
    - `variance/<weights>/variance`, `/second_moment`, `/signal`, `/bound` (Theorem 1): means over the measured groups
      with an advantage, of the estimator of one completion. `/expected_second_moment` is the bound with 1 - Σp² in
      place of 1 - e^-H: what the theorem's assumptions predict, without the luck of the draw. Nearly certain tokens
      carry a large part of it in rare surprises, which a few completions hardly ever contain, so that a variance far
      below it is not to be believed. `/noise_to_signal` is variance over signal, left out where the signal is not
      above 0, and `/relative` the variance over that of `uniform`;
    - `variance/groups`: how many these are; `variance/too_long`: groups of the step above `max_tokens`.

    All weights have mean 1 in each sequence (Eq. 5): `uniform`; `trained`, those of this step's loss, ResT's in a run
    of ResT; `optimal_region`, Eq. 7 with each region's mean of the expected second moment on the measured groups, the
    kind of weights that training can use (the expected one, because weights made from the very draws that they are
    tried on look better than they are); `optimal_token`, Eq. 7 with the theorem's β_t of each token.

    The gradient is that of the policy that sampled: inner products are measured before the update and meet the weights
    after it. Cost of a group with N sampled tokens, vocabulary V and hidden size d: one forward, N² (V + d)
    multiplications, 8 N² bytes on the device, and 4 N² bytes on the CPU until the end of the step.

    Args:
        every_n_rollout_steps: rollout steps from one measurement to the next; the first is measured.
        groups: prompt groups of each rank to measure, those whose rewards differ first, in the order of the step. Every
            rank measures as many as the rank that has the fewest.
        max_tokens: groups with more sampled tokens are passed over.
        floor: of β in the two optimal weights, as a share of the group's mean β.
    """

    def __init__(
        self, every_n_rollout_steps: int = 10, groups: int = 4, max_tokens: int = 4096, floor: float = 0.01
    ) -> None:
        for name, value in (("every_n_rollout_steps", every_n_rollout_steps), ("groups", groups)):
            if value < 1:
                raise ConfigError(f"callbacks.variance_meter.{name}: expected at least 1, found {value}.")
        if max_tokens < 2:
            raise ConfigError(f"callbacks.variance_meter.max_tokens: expected at least 2, found {max_tokens}.")
        if not 0 <= floor <= 1:
            raise ConfigError(f"callbacks.variance_meter.floor: expected from 0 to 1, found {floor}.")
        self._every = every_n_rollout_steps
        self._groups = groups
        self._max_tokens = max_tokens
        self._floor = floor
        self._warned = False
        self._measurements: list[_Measurement] = []
        self._betas = torch.empty(0)

    def on_rollout(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Measure, with the policy that sampled, and log what does not depend on weights."""
        self._measurements = []
        if step.index % self._every:
            return
        started = time.monotonic()
        fitting = [i for i, group in enumerate(step.groups) if len(group.token_ids) <= self._max_tokens]
        too_long = len(step.groups) - len(fitting)
        order = sorted(fitting, key=lambda i: not _teaches(step.groups[i]))
        count = torch.tensor(min(self._groups, len(order)), device=module.device)
        sums = torch.zeros(10, len(Region), dtype=torch.float64)
        for index in order[: int(module.ranks.min(count))]:
            sums += self._measure(module, index, step.groups[index])
        sums = module.ranks.sum(sums.to(module.device)).cpu()
        self._betas = region_means(torch.stack([sums[2], sums[0]]))  # expected second moments, tokens
        skipped = float(module.ranks.sum(torch.tensor(float(too_long), device=module.device)))
        if skipped and not self._warned:
            self._warned = True
            log.warning(
                "Rollout step %d: %d group(s) of more than %d sampled tokens are not measured "
                "(callbacks.variance_meter.max_tokens).",
                step.index,
                skipped,
                self._max_tokens,
            )
        step.metrics |= moment_metrics(sums) | {
            "variance/too_long": skipped,
            "time/variance_meter": time.monotonic() - started,
        }

    @torch.no_grad()
    def _measure(self, module: Training, index: int, group: PromptGroup) -> Tensor:
        """`moment_sums` of a group; its inner products are kept if it has an advantage."""
        wanted: Literal["moments", "gram"] = "gram" if _teaches(group) else "moments"
        scores = module.policy(pack([group]), temperature=module.temperature, last_layer=wanted)
        layer = cast(LastLayerGradients, scores.last_layer)
        if layer.gram is not None:
            surrogate = surrogate_moments(layer.jacobian_norms, scores.entropies)
            expected = layer.expected_second_moments
            self._measurements.append(_Measurement(index, layer.gram.cpu(), surrogate.cpu(), expected.cpu()))
        return moment_sums(
            layer.score_norms, layer.expected_score_norms, layer.jacobian_norms, scores.entropies, group.regions
        )

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Log the variances, with the weights that the loss has used."""
        if step.index % self._every:
            return
        sums = torch.zeros(len(_WEIGHTS), len(_COLUMNS) + 1, dtype=torch.float64)
        for measurement in self._measurements:
            sums += self._estimators(measurement, step.groups[measurement.position].to(torch.device("cpu")))
        self._measurements = []
        step.metrics |= variance_metrics(module.ranks.sum(sums.to(module.device)).cpu())

    def _estimators(self, measurement: _Measurement, group: PromptGroup) -> Tensor:
        """Float64 [4, 6], for each of `_WEIGHTS` the `_COLUMNS`, and 1 to count groups."""
        _, gram, surrogate, expected = measurement
        lengths, advantages = group.lengths, group.advantages
        choices = (
            torch.ones_like(group.weights),
            normalised(group.weights, lengths),
            optimal_weights(self._betas[group.regions], lengths, floor=self._floor),
            optimal_weights(surrogate, lengths, floor=self._floor),
        )
        rows = [
            [
                *estimator_moments(gram, advantages, weights, lengths),
                variance_bound(surrogate, advantages, weights, lengths),
                variance_bound(expected, advantages, weights, lengths),
                1.0,
            ]
            for weights in choices
        ]
        return torch.tensor(rows, dtype=torch.float64)


def variance_metrics(sums: Tensor) -> dict[str, float]:
    """Metrics `variance/…` from sums [4, 6] over groups, in the order of `VarianceMeter._estimators`."""
    count = float(sums[0, -1])
    metrics = {"variance/groups": count}
    if not count:
        return metrics
    uniform = float(sums[0, _COLUMNS.index("variance")])
    for name, row in zip(_WEIGHTS, sums[:, :-1].tolist(), strict=True):
        values = dict(zip(_COLUMNS, row, strict=True))
        metrics |= {f"variance/{name}/{key}": value / count for key, value in values.items()}
        if values["signal"] > 0:
            metrics[f"variance/{name}/noise_to_signal"] = values["variance"] / values["signal"]
        if name != "uniform" and uniform > 0:
            metrics[f"variance/{name}/relative"] = values["variance"] / uniform
    return metrics


def _teaches(group: PromptGroup) -> bool:
    """Whether its rewards differ, which takes two completions at least."""
    return not bool(zero_variance(group.rewards))
