"""The parent's side of a worker process: its start, its pipes and its end. Knows nothing of what it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_START_SECONDS = 60.0  # a start takes a fifth of a second, on a busy disk more


class SandboxError(RuntimeError):
    """The worker cannot do its part: it does not start, or it has a bug. Never the model's fault."""


class WorkerGoneError(Exception):
    """The worker ended before it answered."""


class WorkerProcess:
    """A running worker.

    Args:
        time_limit: seconds that a request may take.
        memory_limit_mb: MiB of address space that it may use.

    Raises:
        SandboxError: it does not start.
    """

    def __init__(self, time_limit: float, memory_limit_mb: int) -> None:
        self._time_limit = time_limit
        kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "src.environments.bfcl.worker", str(time_limit), str(memory_limit_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            # Tools see none of the parent's other variables: there are access tokens among them.
            env={**kept, "PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0"},
            start_new_session=True,  # an interrupt at the terminal is for the parent to handle
        )
        try:
            self._read(_START_SECONDS)
        except (WorkerGoneError, TimeoutError) as error:
            self.kill()
            raise SandboxError(
                "The BFCL worker does not start, see its error on stderr. Is bfcl-eval==2025.6.14 there (make setup)?"
            ) from error

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send a request and wait for its answer. After an error the worker is of no more use.

        Raises:
            TimeoutError: no answer in time.
            WorkerGoneError: there is no worker any more.
        """
        assert self._process.stdin is not None
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except BrokenPipeError as error:
            raise WorkerGoneError from error
        return self._read(self._time_limit)

    def kill(self) -> None:
        """End the process and what it started, and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:
            pass

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        data = bytearray()
        while not data.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise WorkerGoneError
            data += chunk
        return dict(json.loads(data))
