"""A trial as a process: how it is started, here or through a launcher, and followed by what it writes in its folder."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.runs.line_file import read_lines
from src.wings.sweeping.search import Parameters, as_override

log = logging.getLogger(__name__)

CONSOLE = "console.log"
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
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_PATIENCE = 30.0  # seconds that a run has to save itself when it is asked to end


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
        """What a composed multirun says; trials at once share the cores. `given` are overrides that are not Hydra's."""
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


@dataclass(slots=True)
class Watch:
    """Reads a metric of rollout steps from `metrics.jsonl` as it grows.

    Attributes:
        path: the file; it need not be there yet, and a run that starts anew empties it.
        metric: its name.
        window: rollout steps of the trailing mean.
    """

    path: Path
    metric: str
    window: int
    _offset: int = 0
    _step: int = -1
    _last: deque[float] = field(default_factory=deque)

    def news(self) -> Iterator[tuple[int, float]]:
        """(rollout step, trailing mean) of the whole lines since the last call, each step once."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._offset:
            self._offset, self._last = 0, deque()
        if size == self._offset:
            return
        events, self._offset = read_lines(self.path, ("event", "rollout_step"), start=self._offset, growing=True)
        for event in events:
            if event["event"] != "rollout_step" or self.metric not in event:
                continue
            self._last.append(event[self.metric])
            if len(self._last) > self.window:
                self._last.popleft()
            step = int(event["rollout_step"])
            if step > self._step and len(self._last) == self.window:
                self._step = step
                yield step, sum(self._last) / self.window


class TrialRun:
    """A trial's process in its run folder. Killed with the sweep, however that ends (on Linux)."""

    def __init__(self, folder: Path, launch: Launch, parameters: Parameters, watch: Watch) -> None:
        self.folder = folder
        self._watch = watch
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / CONSOLE).open("ab") as console:
            self._process = subprocess.Popen(
                launch.command(folder, parameters),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=launch.environment(),
                start_new_session=True,  # an interrupt at the terminal is for the sweep to handle
                preexec_fn=_die_with_parent,
            )

    def news(self) -> Iterator[tuple[int, float]]:
        """See `Watch.news`."""
        return self._watch.news()

    def ended(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end, wait, and end it if it does not; its cluster jobs are cancelled."""
        cancel_jobs(self.folder)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(_PATIENCE)
                return
            except subprocess.TimeoutExpired:
                log.warning("'%s' does not end by %s.", self.folder, number.name)


def final_value(folder: Path, metric: str) -> float | None:
    """The metric at the end of a run; None for a run that has not finished, or without a finite one."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["final"].get(metric)
    except json.JSONDecodeError:  # cut off while it was written
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _die_with_parent() -> None:
    """In the child: have the kernel end it when the sweep ends, by a kill too."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def last_line(console: Path) -> str:
    """What a run said at its end, without Hydra's advice on tracebacks."""
    lines = [line.strip() for line in console.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and "HYDRA_FULL_ERROR" not in line), "")
