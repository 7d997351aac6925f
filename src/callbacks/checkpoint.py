"""Checkpoints by rollout step."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RolloutCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` every few rollout steps, and the best by a validation metric at each validation.

    Args:
        every_n_rollout_steps: rollout steps between writes of `last.ckpt`.
        **kwargs: Lightning's `ModelCheckpoint` (dirpath, monitor, mode, save_top_k, …).
    """

    def __init__(self, every_n_rollout_steps: int = 10, **kwargs: Any) -> None:
        super().__init__(save_on_train_epoch_end=False, **kwargs)
        if every_n_rollout_steps < 1:
            raise ValueError(
                f"callbacks.checkpoint.every_n_rollout_steps: expected at least 1, found {every_n_rollout_steps}."
            )
        self._every_rollout_steps = every_n_rollout_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` when it is due; the last rollout step always is."""
        rollout_step = int(pl_module.rollout_step)  # type: ignore[arg-type]
        if rollout_step % self._every_rollout_steps == 0 or trainer.should_stop:
            saved = self._last_global_step_saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_global_step_saved = saved  # a validation of this very step may still be the best
