"""How a trial is started: its command and environment, on this machine or through a launcher. Starts nothing itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.wings.sweeping.space import as_override

_OWN = ("hydra.sweep", "hydra/sweeper", "hydra.run", "hydra.mode")
"""Beginnings of the overrides that are the sweep's, not its trials'."""
_LAUNCHERS = ("hydra/launcher", "hydra.launcher")
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_ONE_JOB = (
    "hydra.mode=MULTIRUN",
    "hydra.sweeper=null",
    f"hydra.sweeper={{_target_: {_BASIC_SWEEPER}, max_batch_size: null}}",
)
"""A multirun of one job, whatever sweeper the search has: a node that is null takes others' keys."""
_JOB = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True, slots=True)
class Launch:
    """How trials are started.

    Attributes:
        program: the Python file that trains.
        overrides: of the sweep's command line, which all trials share.
        options: of Hydra, before the overrides.
        launcher: overrides of Hydra's launcher, for trials as cluster jobs; None: processes on this machine.
        threads: of a trial on this machine; None leaves it to the libraries.
    """

    program: Path
    overrides: Sequence[str] = ()
    options: Sequence[str] = ()
    launcher: Sequence[str] | None = None
    threads: int | None = None

    @classmethod
    def of(cls, config: DictConfig, given: Sequence[str], program: Path, parallel: int) -> Launch:
        """What a composed multirun says.

        Args:
            config: with Hydra's own node.
            given: overrides that are not Hydra's.
            program: the Python file that trains.
            parallel: trials at once, which share the cores.
        """
        own = [text for text in map(str, config.hydra.overrides.hydra) if not text.lstrip("+~").startswith(_OWN)]
        others = [text for text in own if not text.lstrip("+~").startswith(_LAUNCHERS)]
        options = ["--config-name", str(config.hydra.job.config_name)]
        for source in config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                options += ["--config-dir", source.path]
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            return cls(program, [*given, *others], options, launcher=[text for text in own if text not in others])
        return cls(program, [*given, *others], options, threads=None if parallel == 1 else max(1, cores() // parallel))

    def command(self, folder: Path, parameters: Mapping[str, Any]) -> list[str]:
        """The command of a trial. In a folder with a checkpoint it goes on from there.

        A trial as a cluster job is a Hydra multirun of one job, which waits until the job is done.
        """
        program = [sys.executable, str(self.program), *self.options]
        given = [*self.overrides, *(as_override(*pair) for pair in parameters.items()), "ckpt_path=auto"]
        if self.launcher is None:
            return [*program, *given, "hydra.mode=RUN", as_override("hydra.run.dir", str(folder))]
        place = {
            "hydra.sweep.dir": folder.parent,
            "hydra.sweep.subdir": folder.name,
            "hydra.launcher.submitit_folder": jobs_folder(folder) / "%j",
        }
        return [*program, *_ONE_JOB, *self.launcher, *given, *(as_override(key, str(at)) for key, at in place.items())]

    def environment(self) -> dict[str, str]:
        """Of the trial's process."""
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, **threads}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def jobs_folder(folder: Path) -> Path:
    """Where a launcher writes the jobs of a trial, a folder each, named after their ids."""
    return folder / ".submitit"


def cancel_jobs(folder: Path) -> None:
    """Cancel what a trial has submitted to a cluster; on a machine without one, nothing."""
    jobs = [path.name for path in jobs_folder(folder).glob("*") if _JOB.fullmatch(path.name)]
    if jobs and shutil.which("scancel"):
        subprocess.run(["scancel", *jobs], check=False)
