"""A progress bar that counts rollout steps."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from src.training.step import Training


class RolloutProgressBar(RichProgressBar):
    """Lightning's rich bar, over the whole run instead of over one pass of the data."""

    @property
    def total_train_batches(self) -> int:
        """Rollout steps of the run."""
        return cast(Training, self.trainer.lightning_module).updates.rollout_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count from the start of the run."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, cast(Training, pl_module).rollout_step - 1)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Rollout step"
