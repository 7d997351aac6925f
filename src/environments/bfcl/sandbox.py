"""Executes and judges BFCL calls in a worker process, by the official checkers. Imports neither them nor torch.

Whatever the model wrote, a request ends: with an answer, or with `time_limit` or `memory_limit`. Requests do not
depend on each other: the worker keeps no state between them, so a new one takes over where one was killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.environments.bfcl.calls import bounded, well_formed
from src.protocol.dialogue import JsonValue, ToolCall

_ROOT = Path(__file__).resolve().parents[3]
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_START_SECONDS = 60.0  # a start takes a fifth of a second, on a busy disk more
_MAX_ERROR = 400
_LANGUAGES = {"java": "Java", "javascript": "JavaScript"}  # all other categories: Python


class SandboxError(RuntimeError):
    """The worker cannot do its part: it does not start, or it has a bug. Never the model's fault."""


class _WorkerGoneError(Exception):
    """The worker ended before it answered."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one entry.

    Attributes:
        passed: by the official rule.
        error_type: empty if passed; the official one, or `time_limit`, `memory_limit`, `checker_error` (the official
            checker itself failed on the model's values).
        error: for a reader; at most two lines.
    """

    passed: bool
    error_type: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Execution:
    """Of one step.

    Attributes:
        results: one a call, as the official executor returns them.
        error_type: `time_limit` or `memory_limit`: the step could not be run, and there are no results.
    """

    results: tuple[str, ...]
    error_type: str = ""


def check_limits(section: str, time_limit: float, memory_limit_mb: int) -> None:
    """Refuse limits of a section of the config that leave no room for a request; see `Sandbox`.

    Raises:
        ValueError: names the key.
    """
    if time_limit <= 0:
        raise ValueError(f"{section}.time_limit: expected seconds above 0, found {time_limit}.")
    if memory_limit_mb < 256:
        raise ValueError(f"{section}.memory_limit_mb: expected at least 256 MiB, found {memory_limit_mb}.")


class Sandbox(AbstractContextManager["Sandbox"]):
    """A worker process and its requests. A context manager; the process starts with the first request.

    Args:
        time_limit: seconds that a request may take: for `execute`, all calls of the entry so far, for a check, its
            calls and the gold ones. Gold entries take a hundredth of a second; one that takes longer fails.
        memory_limit_mb: MiB of address space of the process.

    Raises:
        ValueError: a limit that leaves no room.
    """

    def __init__(self, *, time_limit: float = 10.0, memory_limit_mb: int = 1024) -> None:
        self.time_limit = time_limit
        self.memory_limit_mb = memory_limit_mb
        check_limits("tools.sandbox", time_limit, memory_limit_mb)
        self._worker: _Worker | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker. A later request starts a new one."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def execute(self, entry: Mapping[str, JsonValue], steps: Sequence[Sequence[ToolCall]]) -> Execution:
        """Run an entry's steps from its initial state and return the results of the last.

        Args:
            entry: a multi-turn entry of the benchmark (`id`, `initial_config`, `involved_classes`).
            steps: all steps of the entry so far, over all turns, oldest first; at least one.

        A call that the entry's classes do not allow is not run; its result is the official evaluator's error.

        Raises:
            SandboxError: the worker has a bug, or the entry is none of the benchmark's.
        """
        answer = self._ask({"kind": "execute", **_multi_turn_fields(entry), "steps": [_pairs(step) for step in steps]})
        if "results" not in answer:
            return Execution((), answer["error_type"])
        return Execution(tuple(well_formed(result) for result in answer["results"]))

    def check_single_turn(
        self, entry: Mapping[str, JsonValue], category: str, possible_answer: JsonValue, calls: Sequence[ToolCall]
    ) -> Verdict:
        """Judge the calls of a single-turn entry.

        Args:
            entry: with its function documentation (`function`).
            category: e.g. `live_parallel_multiple`; decides on the rule and on the language.
            possible_answer: the entry's `ground_truth`; None for relevance and irrelevance.
            calls: what the model's output decodes to, nothing for no call.

        Raises:
            SandboxError: the worker has a bug, or the entry is none of the benchmark's.
        """
        if "irrelevance" in category:
            return (
                Verdict(True) if not calls else Verdict(False, "irrelevance_error:decoder_success", "There is a call.")
            )
        if "relevance" in category:
            return Verdict(True) if calls else Verdict(False, "relevance_error:decoder_failed", "There is no call.")
        return self._verdict(
            {
                "kind": "check_single_turn",
                "function": entry["function"],
                "category": category,
                "language": _LANGUAGES.get(category, "Python"),
                "possible_answer": possible_answer,
                "calls": _pairs(calls),
            }
        )

    def check_multi_turn(
        self,
        entry: Mapping[str, JsonValue],
        ground_truth: Sequence[Sequence[str]],
        turns: Sequence[Sequence[Sequence[ToolCall]]],
    ) -> Verdict:
        """Judge the calls of a multi-turn entry by running them and the gold ones.

        Args:
            entry: as for `execute`.
            ground_truth: the entry's gold calls, `[turn][call]`.
            turns: the model's calls, `[turn][step][call]`. Fewer turns than gold ones: the model was stopped, and the
                entry has failed.

        Raises:
            SandboxError: the worker has a bug, or the entry is none of the benchmark's.
        """
        if len(turns) != len(ground_truth):
            error = f"{len(turns)} turns, and the ground truth has {len(ground_truth)}."
            return Verdict(False, "multi_turn:force_terminated", error)
        return self._verdict(
            {
                "kind": "check_multi_turn",
                **_multi_turn_fields(entry),
                "ground_truth": ground_truth,
                "turns": [[_pairs(step) for step in turn] for turn in turns],
            }
        )

    def _verdict(self, request: Mapping[str, Any]) -> Verdict:
        answer = self._ask(request)
        return Verdict(answer["passed"], answer.get("error_type", ""), _two_lines(answer.get("error", "")))

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        for _ in range(2):  # a worker that ended between requests is replaced
            if self._worker is None:
                self._worker = _Worker(self.time_limit, self.memory_limit_mb)
            try:
                answer = self._worker.ask(line)
            except TimeoutError:
                self.close()
                return {"passed": False, "error_type": "time_limit"}
            except _WorkerGoneError:
                self.close()
                continue
            if "bug" in answer:
                raise SandboxError(f"The BFCL worker failed on a request ({request['kind']}):\n{answer['bug']}")
            return answer
        return {"passed": False, "error_type": "memory_limit"}  # the kernel ended it twice: out of memory or of stack


class _Worker:
    """The parent's side of a running worker: its start, its pipes and its end. Knows nothing of what it is asked.

    Args:
        time_limit: seconds that a request may take.
        memory_limit_mb: MiB of address space that it may use.

    Raises:
        SandboxError: it does not start.
    """

    def __init__(self, time_limit: float, memory_limit_mb: int) -> None:
        self._time_limit = time_limit
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
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
        except (_WorkerGoneError, TimeoutError) as error:
            self.kill()
            raise SandboxError(
                "The BFCL worker does not start, see its error on stderr. Is bfcl-eval==2025.6.14 there (make setup)?"
            ) from error

    def ask(self, line: bytes) -> dict[str, Any]:
        """Send a request and wait for its answer. After an error the worker is of no more use.

        Raises:
            TimeoutError: no answer in time.
            _WorkerGoneError: there is no worker any more.
        """
        assert self._process.stdin is not None
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except BrokenPipeError as error:
            raise _WorkerGoneError from error
        return self._read(self._time_limit)

    def kill(self) -> None:
        """End the process and what it started, and wait for it."""
        with suppress(ProcessLookupError):
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
                raise _WorkerGoneError
            data += chunk
        return dict(json.loads(data))


def _pairs(calls: Sequence[ToolCall]) -> list[tuple[str, dict[str, JsonValue]]]:
    return [(call.name, dict(call.parameters)) for call in map(bounded, calls)]


def _multi_turn_fields(entry: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: entry[name] for name in ("id", "initial_config", "involved_classes")}


def _two_lines(text: str) -> str:
    text = "\n".join(well_formed(text).splitlines()[:2])
    return text if len(text) <= _MAX_ERROR else text[:_MAX_ERROR] + "…"
