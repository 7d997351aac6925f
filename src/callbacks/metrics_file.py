"""`metrics.jsonl` in the run folder: every number of every rollout step, readable without any tool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from src.callbacks.line_file import LineFileCallback
from src.training.step import RolloutStep, Training


class MetricsFile(LineFileCallback):
    """A line for each rollout step (from 0), validation, benchmark, fault and alarm, told apart by the key `event`.

    A validation or benchmark at rollout step s saw the weights after s steps. A fault or alarm of a rollout step comes
    before its line. Numbers that are not finite are left out: JSON has none.

    Args:
        path: the file; in the same run folder a resumed run goes on in it where its checkpoint was.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._pending: RolloutStep | None = None

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Wait for the metrics that other callbacks add."""
        self._pending = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Write the step."""
        if self._pending is not None:
            self._write("rollout_step", self._pending.index, self._pending.metrics)
            self._pending = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the means of all validation splits."""
        rollout_step, values = cast(Training, pl_module).validated
        self._write("validation", rollout_step, values)

    def on_benchmark(self, trainer: Trainer, module: Training, scores: dict[str, float]) -> None:
        """Write the scores of all benchmarks."""
        self._write("benchmark", module.rollout_step, scores)

    def on_event(
        self, trainer: Trainer, module: Training, event: str, values: Mapping[str, str | float | None]
    ) -> None:
        """Write a fault or an alarm at once: the run may not live to the end of the step."""
        self._write(event, module.rollout_step, values)

    @rank_zero_only
    def _write(self, event: str, rollout_step: int, values: Mapping[str, str | float | None]) -> None:
        finite = {key: x for key, x in values.items() if not isinstance(x, float) or math.isfinite(x)}
        self.lines.append([{"event": event, "rollout_step": rollout_step, **finite}])
