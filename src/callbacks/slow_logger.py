"""Loggers that hold training up: their calls are timed, nothing else about them is changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from src.errors import ConfigError
from src.training.step import RolloutCallback, announce

log = logging.getLogger(__name__)


class SlowLogger(RolloutCallback):
    """Announces every call of a logger that takes long as an event `slow_logger`, and warns once of each logger.

    Args:
        max_seconds: that one call may take.

    Raises:
        ValueError: not a positive number.
    """

    def __init__(self, max_seconds: float = 30.0) -> None:
        if max_seconds <= 0:
            raise ConfigError(f"callbacks.slow_logger.max_seconds: expected above 0, found {max_seconds}.")
        self._max_seconds = max_seconds
        self._timed: list[Logger] = []
        self._warned: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time `log_metrics` of every logger."""
        for logger in trainer.loggers:
            # an attribute of the instance hides the method of the class until `teardown`
            setattr(logger, "log_metrics", self._timing(trainer, type(logger).__name__, logger.log_metrics))  # noqa: B010
            self._timed.append(logger)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the loggers be."""
        for logger in self._timed:
            vars(logger).pop("log_metrics", None)
        self._timed = []

    def _timing(self, trainer: Trainer, name: str, log_metrics: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            started = time.monotonic()
            log_metrics(*args, **kwargs)
            seconds = time.monotonic() - started
            if seconds <= self._max_seconds:
                return
            announce(trainer, "slow_logger", logger=name, seconds=round(seconds, 3))
            if name not in self._warned:
                log.warning("%s took %.1f s to log; training waits for it. Is its network or disk slow?", name, seconds)
                self._warned.add(name)

        return timed
