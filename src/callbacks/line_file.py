"""What callbacks share that write a file of lines in the run folder: its place in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from src.runs.line_file import LineFile
from src.training.step import RolloutCallback


class LineFileCallback(RolloutCallback):
    """Writes `lines`; a run that goes on in its folder cuts off what was written after its checkpoint.

    Args:
        path: the file. Rank 0 writes it.
    """

    def __init__(self, path: str) -> None:
        self.lines = LineFile(path)
        self._position: int | None = None

    def prepare(self, *, anew: bool) -> None:
        """Empty the file if its lines will be written again."""
        if anew:
            self.lines.rewind(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the checkpoint was, if it is of this run folder; otherwise the file is another run's."""
        if self._position is not None and trainer.is_global_zero and trainer.ckpt_path is not None:
            folder = self.lines.path.resolve().parent
            if Path(trainer.ckpt_path).resolve().is_relative_to(folder):
                self.lines.rewind(self._position)
        self._position = None

    def state_dict(self) -> dict[str, Any]:
        """Where the file ends."""
        return {"position": self.lines.position()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where it ended."""
        self._position = int(state_dict["position"])
