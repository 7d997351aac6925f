"""What a change of the config would save of a step: each row predicts the step again with the change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from src.runs.folder import GIB
from src.wings.timing.step_time import Setup, predict

_LEAST = 0.005
"""Share of a step below which a saving is not worth a line."""


@dataclass(frozen=True, slots=True)
class Saving:
    """A change of the config.

    Attributes:
        overrides: as they are written on the command line; a row is left out where a config lacks one of their keys.
        price: what it costs.
        change: the setup with it.
    """

    overrides: str
    price: str
    change: Callable[[Setup], Setup]

    @property
    def keys(self) -> tuple[str, ...]:
        """That it sets.

        >>> Saving("rollout.max_num_seqs=1024 rollout.sleep=true", "", lambda setup: setup).keys
        ('rollout.max_num_seqs', 'rollout.sleep')
        """
        return tuple(override.partition("=")[0] for override in self.overrides.split())


def of_shape(**changes: Any) -> Callable[[Setup], Setup]:
    """A change of fields of the step's shape."""
    return lambda setup: replace(setup, shape=replace(setup.shape, **changes))


def _larger_engine(setup: Setup) -> Setup:
    engine = setup.engine
    if engine.share is None or engine.cache is None:
        return setup  # it has all there is
    cache = engine.cache + max(0.0, 0.7 - engine.share) * setup.device.memory * GIB
    return replace(setup, engine=replace(engine, together=1024, cache=cache))


SAVINGS = (
    Saving("policy.gradient_checkpointing=selective", "memory: a dry run with it tells", of_shape(recomputed=0.0)),
    Saving(
        "updates.old_logprobs=sampler algorithm.loss.importance_cap=2",
        "the engine's rounding is in the ratio",
        of_shape(scored=0.0),
    ),
    Saving(
        "rollout.gpu_memory_utilization=0.7 rollout.max_num_seqs=1024",
        "memory: a dry run with it tells",
        _larger_engine,
    ),
    Saving(
        "rollout.max_sequences=1024 rollout.max_batch_tokens=1048576",
        "memory: a dry run with it tells",
        lambda setup: replace(setup, engine=replace(setup.engine, together=1024)),
    ),
)
"""Rows to add are of the same kind: the overrides, their price, and the fields of the setup that they change."""


def savings(setup: Setup) -> list[tuple[Saving, float]]:
    """The changes that would make the step shorter, with the seconds that each saves by itself; dearest first."""
    now = sum(predict(setup).values())
    found = [(saving, now - sum(predict(saving.change(setup)).values())) for saving in SAVINGS]
    return sorted((pair for pair in found if pair[1] > _LEAST * now), key=lambda pair: -pair[1])
