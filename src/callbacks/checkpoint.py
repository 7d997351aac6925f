"""Checkpoints by rollout step, each at the end of one; and the end of a run that a signal asked to stop."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.api import CheckpointException
from typing_extensions import override

from src.errors import ConfigError
from src.models.checkpoints.writing import file_sums, partial_path, publish, remove, seal, settle
from src.runs.signals import StoppedError, StopSignals
from src.training.ranks import Ranks

log = logging.getLogger(__name__)

PREVIOUS = "previous.ckpt"
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the one before it is as it was."""


class RolloutCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` every few rollout steps, and the best by a validation metric at each validation.

    A checkpoint is of the end of a rollout step, its validation and benchmarks included, so that a run that goes on
    from it begins with the next step. It appears under its name when it is whole and on disk.

    After SIGTERM or SIGUSR1 on any rank, all ranks save at the end of the rollout step and the run ends with the status
    `EXIT_SAVED`.

    Args:
        every_n_rollout_steps: rollout steps between writes of `last.ckpt`.
        keep_previous: keep the `last.ckpt` before it as `previous.ckpt`, to go on from if the last is damaged.
        **kwargs: Lightning's `ModelCheckpoint` (dirpath, monitor, mode, save_top_k, …).

    Raises:
        ValueError: an interval below 1.
    """

    def __init__(self, every_n_rollout_steps: int = 10, *, keep_previous: bool = True, **kwargs: Any) -> None:
        super().__init__(save_on_train_epoch_end=False, **kwargs)
        if every_n_rollout_steps < 1:
            raise ConfigError(
                f"callbacks.checkpoint.every_n_rollout_steps: expected at least 1, found {every_n_rollout_steps}."
            )
        self._every_rollout_steps = every_n_rollout_steps
        self._keep_previous = keep_previous
        self._signals = StopSignals()
        self._loaded_from = Path()
        self._settled = False

    # When

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save when the run is asked to end."""
        super().on_train_start(trainer, pl_module)
        self._signals.install()
        self._settle(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning starts no training where a checkpoint has all of it."""
        super().on_fit_end(trainer, pl_module)
        if not self._settled:
            self._settle(trainer)

    def _settle(self, trainer: Trainer) -> None:
        """Give the checkpoint that was taken its name."""
        self._settled = True
        trainer.strategy.barrier()  # all ranks have read the checkpoint
        folder, taken = Path(str(self.dirpath)), Path(trainer.ckpt_path or "")
        if trainer.is_global_zero and taken.resolve().parent == folder.resolve():
            settle(folder, taken, self._previous(taken.with_suffix("")))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before training there is not."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._signals.default()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The end of a rollout step, unless its validation comes first."""
        epoch = trainer.fit_loop.epoch_loop
        if not epoch._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._end_step(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best, then it is the end of the rollout step."""
        fast = getattr(trainer, "fast_dev_run", False)  # Lightning sets it without declaring it
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not fast:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._end_step(trainer, pl_module)

    def _end_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `last.ckpt` when it is due, the last rollout step always is; then end if that was asked for."""
        step = int(module.rollout_step)  # type: ignore[arg-type]
        stop = trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False)
        if stop or trainer.should_stop or step % self._every_rollout_steps == 0:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if stop and not trainer.should_stop:
            log.warning(
                "Stopped after rollout step %d; '%s' is saved. To go on: ckpt_path=auto hydra.run.dir=%s",
                step,
                self.last_model_path,
                trainer.default_root_dir,
            )
            raise StoppedError(trainer.global_rank)

    # How

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write beside, seal, rename; see `saving`."""
        path = Path(filepath)
        partial = partial_path(path)
        failure = ""
        if trainer.is_global_zero:
            remove(partial)
        trainer.strategy.barrier()
        try:
            trainer.save_checkpoint(partial, self.save_weights_only)
            sums = Ranks().gather(file_sums(partial, trainer.global_rank)) if partial.is_dir() else []
            if trainer.is_global_zero:
                seal(partial, sums)
                publish(partial, path, self._previous(path))
        except (OSError, CheckpointException) as error:
            failure = str(error)
        if failure := trainer.strategy.broadcast(failure):
            raise CheckpointWriteError(
                f"checkpoint '{path}' could not be written: {failure}. The one before it is as it was. See that there "
                f"is room and that the folder can be written, then go on with ckpt_path=auto "
                f"hydra.run.dir={trainer.default_root_dir}."
            )
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)

    def _previous(self, path: Path) -> Path | None:
        """Where the one that it replaces is kept."""
        is_last = path.name == f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        return path.with_name(PREVIOUS) if is_last and self._keep_previous else None

    # What is remembered

    @override
    def state_dict(self) -> dict[str, Any]:
        """Scores, and where their files are as seen from the folder of the checkpoint."""
        state = super().state_dict()
        state["dirpath"] = ""
        state["best_k_models"] = {self._seen(path): score for path, score in state["best_k_models"].items()}
        return state | {name: self._seen(state[name]) for name in _PATHS}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where it lies."""
        self._loaded_from = Path(str(trainer.ckpt_path)).absolute().parent

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the best, also in another run folder: there it counts, and its file stays where it is."""
        for name in ("best_model_score", "current_score", "kth_value"):
            setattr(self, name, state_dict[name])
        self.best_k_models = {self._found(path): score for path, score in state_dict["best_k_models"].items()}
        for name in _PATHS:
            setattr(self, name, self._found(state_dict[name]))

    def _seen(self, path: str) -> str:
        return os.path.relpath(path, str(self.dirpath)) if path else path

    def _found(self, path: str) -> str:
        return os.path.normpath(self._loaded_from / path) if path else path
