"""The Hydra sweeper `hydra/sweeper=optuna`: hands over to `wings.sweeping` and translates errors, nothing else.

Hydra finds sweepers in the namespace package `hydra_plugins` alone, and imports its modules whenever a program starts.
So there is no `__init__.py` here, and Optuna is imported when there is something to sweep.
"""

from __future__ import annotations

import inspect
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class TrialSweeper(Sweeper):
    """A multirun whose jobs are the trials of an Optuna study, each a process of its own (`docs/sweeps.md`).

    Args:
        settings: `hydra.sweeper`, read when it sweeps: see `src.wings.sweeping.search.SweepSettings`.
    """

    def __init__(self, **settings: Any) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self._program = Path(sys.argv[0])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`. Trials start the file that has the task function."""
        self.hydra_context = hydra_context
        self.config = config
        self._program = Path(inspect.getfile(task_function)).resolve()
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )  # its settings are checked here; trials use it in their own processes

    def sweep(self, arguments: list[str]) -> float | None:
        """Run a study, or go on with it.

        Args:
            arguments: of the command line, without Hydra's own: plain overrides and sweeps.

        Returns:
            The best value; None if trials were only planned.

        Raises:
            CompactHydraException: what is wrong, as one message; Hydra shows no traceback of it.
            SystemExit: status 130, after an interrupt.
        """
        from src.errors import ConfigError
        from src.wings.sweeping.scheduler import SweepError
        from src.wings.sweeping.sweep import sweep

        assert self.config is not None and self.hydra_context is not None
        try:
            return sweep(self.config, arguments, self._program, self.hydra_context.config_loader)
        except (ConfigError, SweepError) as error:
            raise CompactHydraException(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(130)
