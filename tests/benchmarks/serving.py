"""Contestants: processes that take turns at the same work, each with its own Python, asked by JSON lines.

Only the standard library is used here, because contestants run in the environments of peers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 3000
_PATIENCE = 20.0  # seconds


class ContestantError(RuntimeError):
    """A contestant ended instead of answering; the message has the end of its log."""


class Channel:
    """The contestant's side: requests from stdin, replies to what was stdout. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next request; ends the process when there are no more."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        request: dict[str, Any] = json.loads(line)
        return request

    def send(self, **reply: Any) -> None:
        self._replies.write(json.dumps(reply) + "\n")

    def serve(self, tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
        """Answer `{"task": name, …arguments}` until there are no more requests."""
        while True:
            request = self.receive()
            self.send(**tasks[request.pop("task")](**request))


class Contestant:
    """The other side: starts the process, which gets `job` as its first request.

    Args:
        module: to run with `python -m` at the project's root.
        job: what to load.
        python: of the environment to run in; this one's if None.
    """

    def __init__(self, module: str, job: Mapping[str, Any], python: Path | None = None) -> None:
        self._name = module.rsplit(".", 1)[-1]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.about = self._exchange(dict(job))

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            ContestantError: the process ended.
        """
        return self._exchange({"task": task, **arguments})

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise ContestantError(f"{self._name} ended with code {code}:\n{self._log.read()[-_LOG_TAIL:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process, by itself if it will: no more requests are what it waits for."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
