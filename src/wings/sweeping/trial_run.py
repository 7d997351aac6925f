"""A trial as a process: the program with the trial's parameters, followed by what it writes in its run folder."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from src.wings.sweeping.launch import Launch, cancel_jobs
from src.wings.sweeping.space import Parameters

log = logging.getLogger(__name__)

CONSOLE = "console.log"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_PATIENCE = 30.0  # seconds that a run has to save itself when it is asked to end


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
        with self.path.open("rb") as file:
            file.seek(self._offset)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
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
    """A trial's process. Killed with the sweep, however that ends (on Linux).

    Args:
        folder: the run folder.
        launch: how to start it.
        parameters: of the trial.
        watch: of its metrics.
    """

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
