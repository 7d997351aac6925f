"""`environment=python`: a user's class or functions as tools, as TRL's `environment_factory` and `tools` take them."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from transformers.utils import get_json_schema

from src.environments.answers import Result
from src.environments.bfcl.sandbox import KEPT_ENVIRONMENT, check_limits
from src.environments.protocol import EnvironmentFaultError, Opening, Task
from src.environments.python_worker import remove_folder
from src.environments.tool_episode import (
    EpisodeReward,
    ToolEpisode,
    opening,
    read_tasks,
    row_files,
    shown_variables,
)
from src.errors import ConfigError, check_fields
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec
from src.rewards.functions.user_function import find

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_NOT_TOOLS = ("reset", "get_reward", "close")
_JSON_TYPES = {str, int, float, bool, list, dict, tuple, type(None), Any}
_START_SECONDS = 120.0  # the user's file may import much
_END_SECONDS = 60.0  # a tool may have written many files
_RESET_LIMIT = 1_000_000  # characters


class PythonEnvironment:
    """Episodes with tools in Python. Each is played in a process of its own.

    A class is constructed without arguments. `reset(**row)` begins an episode and may return text, which is appended to
    the prompt; without `**` it is given the columns that it names, and the episode's `seed` where it names that.
    `get_reward()` returns what the episode earned; a function may do so in its place (see `reward`). The other public
    methods that have a docstring are the tools, except `close`, which is called at the end. Functions are tools without
    state. Every parameter needs a type hint and a line under `Args:`. Neighbouring calls of `async` tools run at the
    same time, all others in order. The file is imported twice: here, for the tools' schemas, and in the process that
    forks the workers.

    Where a step takes too long or its process ends, its calls are answered so. With functions the episode goes on, in a
    new process. With a class it is over, as its state is lost, and earns `lost_reward`.

    Args:
        path: `FILE.py:CLASS`, `package.module:CLASS`, or functions, `FILE.py:NAME,NAME`, or a list of such.
        rows: a file of rows with a `prompt`, text or messages, and any other columns; or one for each split. With a
            class the prompt may come from `reset` alone.
        reward: of functions, or of a class without `get_reward`; see `EpisodeReward`. It runs in the run's own process.
        name: for logs and metrics.
        time_limit: seconds for the calls of an answer, for `reset` and for `get_reward`.
        memory_limit_mb: MiB that each process of an episode may allocate, and of a file that it writes.
        process_limit: processes that the calls of an answer may start.
        concurrent: episodes that may start, or whose calls may run, at once.
        result_limit: characters of a result.
        variables: names of environment variables that tools see; all others but PATH and the like are hidden.
        turn_rewards: call `get_reward` after every answer, which earns the difference, not once at the end.
        success_at: the reward from which a task is done.
        lost_reward: of an episode whose process is gone. Set it to the lowest reward that there is, lest the policy
            learns to end the process.

    Raises:
        ConfigError: a class or function that is not there or cannot be offered, or a missing file of rows.
        ValueError: a limit that leaves no room.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        rows: str | Mapping[str, str],
        *,
        reward: str | None = None,
        name: str = "python",
        time_limit: float = 10.0,
        memory_limit_mb: int = 1024,
        process_limit: int = 64,
        concurrent: int = 8,
        result_limit: int = 8000,
        variables: Sequence[str] = (),
        turn_rewards: bool = False,
        success_at: float = 1.0,
        lost_reward: float = 0.0,
    ) -> None:
        check_limits("environment", time_limit, memory_limit_mb)
        self.name = name
        self.time_limit = time_limit
        self.lost_reward = lost_reward
        self.result_limit = result_limit
        self.concurrent = concurrent
        rules = (
            ("result_limit", result_limit > 0, "characters above 0"),
            ("concurrent", concurrent >= 1, "at least 1"),
        )
        check_fields("environment", self, rules)
        self._episode = partial(
            ToolEpisode, result_limit=result_limit, turn_rewards=turn_rewards, success_at=success_at
        )
        self._files = row_files(rows)
        self.paths = [one for given in ([path] if isinstance(path, str) else path) for one in _single_paths(str(given))]
        found: list[Any] = [find("environment.path", one) for one in self.paths]
        self.has_class = any(map(inspect.isclass, found))
        if not found or (self.has_class and len(found) > 1):
            raise ConfigError(f"environment.path: expected one class or functions, found {', '.join(self.paths)}.")
        if self.has_class and not hasattr(found[0], "reset"):
            raise ConfigError(f"environment.path: {path} has no method reset(**row), which begins an episode. Add it.")
        self.has_reward = self.has_class and hasattr(found[0], "get_reward")
        if self.has_reward and reward is not None:
            raise ConfigError(f"environment.reward: {path} has a method get_reward. Drop one of the two.")
        self.reward = None if reward is None else EpisodeReward(reward)
        self.parts = ("environment",) if self.has_reward or reward is not None else ()
        self.has_close = self.has_class and hasattr(found[0], "close")
        self.tools = _class_tools(found[0], self.paths[0]) if self.has_class else tuple(map(_spec, found, self.paths))
        self._variables = shown_variables(variables)
        folders = [os.path.dirname(one) for one in self.paths]
        folders += [os.getcwd(), str(Path.home()), sys.prefix, sys.base_prefix, str(_ROOT)]
        self.hidden = [*folders, *self._variables.values()]
        self._limits = {"memory_limit_mb": memory_limit_mb, "process_limit": process_limit}
        self._server: _Server | None = None
        self._lock = threading.Lock()

    def splits(self) -> tuple[str, ...]:
        """See `Environment`."""
        return tuple(self._files)

    def tasks(self, split: str) -> Sequence[Task]:
        """See `Environment`."""
        return read_tasks(self._files, split, prompts=not self.has_class)

    def opening(self, task: Task) -> Opening:
        """See `Environment`."""
        return Opening.of(self.start(task, 0))

    def start(self, task: Task, seed: int) -> ToolEpisode:
        """See `Environment`."""
        connection = _Connection(self, task, seed)
        try:
            text = connection.reset() if self.has_class else ""
            messages = opening(task.row, f"{self.name}[{task.id}]", text)
        except BaseException:
            connection.close()
            raise
        return self._episode(self.tools, messages, connection)

    def worker(self, seed: int) -> _Worker:
        """A new worker process.

        Raises:
            EnvironmentFaultError: it does not start.
        """
        with self._lock:
            if self._server is not None and not self._server.is_alive():
                self._server.close()
                self._server = None
            if self._server is None:
                setup = {"paths": self.paths, "sys_path": sys.path, **self._limits}
                self._server = _Server(setup, self._variables)
            return _Worker(self._server, seed)

    def close(self) -> None:
        """See `Environment`. Ends the workers of open episodes too."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None


class _Connection:
    """See `Connection`: a worker, and a new one after a limit where tools have no state."""

    def __init__(self, environment: PythonEnvironment, task: Task, seed: int) -> None:
        self._environment = environment
        self._task = task
        self._seed = seed
        self._worker: _Worker | None = environment.worker(seed)
        self.lost = ""
        self.hidden = environment.hidden

    def reset(self) -> str:
        """Begin the task; the text that is to be added to its prompt.

        Raises:
            EnvironmentFaultError: it cannot begin.
        """
        ((reply, problem),) = self._ask("reset", [ToolCall("reset", self._task.row)], _RESET_LIMIT)
        if reply is None or reply["error"]:
            raise self._fault("reset", reply["text"] if reply else problem, f" for the task '{self._task.id}'")
        return reply["text"] or ""

    def run(self, calls: Sequence[ToolCall]) -> list[Result]:
        """See `Connection`."""
        results = []
        for reply, problem in self._ask("calls", calls, self._environment.result_limit):
            if reply is None:
                results.append(Result.missing(problem, self._environment.time_limit))
            else:
                text = reply["text"] or ""
                problem = "tool_error" if reply["error"] else ""
                results.append(Result(f"Error: {text}" if problem else text, problem, reply["size"]))
        return results

    def reward(self, history: Sequence[Message]) -> float | None:
        """See `Connection`."""
        if not self._environment.parts:
            return None
        if self.lost:
            return self._environment.lost_reward
        if self._environment.reward is not None:
            return self._environment.reward(self._task.row, history)
        ((reply, _),) = self._ask("reward", [ToolCall("get_reward", {})], 1000)
        if reply is None:
            return self._environment.lost_reward
        if reply["error"]:
            raise self._fault("get_reward", reply["text"])
        value = reply["value"]
        if value is not None and not math.isfinite(value):
            raise self._fault("get_reward", f"expected a finite number, found {value}")
        return value

    def close(self) -> None:
        """See `Connection`."""
        if self._worker is not None and not self.lost and self._environment.has_close:
            self._ask("close", [ToolCall("close", {})], 0)
        self._end()

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, kind: str, calls: Sequence[ToolCall], limit: int) -> list[tuple[dict[str, Any] | None, str]]:
        """The replies to calls; None and the problem for those that have none."""
        if self._worker is None and not self._environment.has_class:
            self._worker = self._environment.worker(self._seed)
        if self._worker is None:
            return [(None, "tool_died")] * len(calls)
        asked = [{"name": call.name, "arguments": dict(call.parameters)} for call in calls]
        replies, problem = self._worker.ask(kind, asked, self._environment.time_limit, limit)
        if problem:
            self._end()
            self.lost = problem if self._environment.has_class else ""
        return [(reply, problem) for reply in replies]

    def _fault(self, method: str, what: str, where: str = "") -> EnvironmentFaultError:
        words = {"timeout": f"no end within {self._environment.time_limit:g} seconds", "tool_died": "its process ended"}
        mend = "Mend the class, or the row." if method == "reset" else "Mend the class."
        text = f"{self._environment.paths[0]}: {method}() failed{where}: {words.get(what, what)}. {mend}"
        return EnvironmentFaultError(text)


class _Server:
    """The parent's side of the process that forks workers.

    Args:
        setup: see `python_worker.main`.
        variables: of the environment, besides those that every process needs.

    Raises:
        EnvironmentFaultError: it does not start.
    """

    def __init__(self, setup: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="episodes-")
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "src.environments.python_worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={**kept, **variables, "PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0"},
            start_new_session=True,  # an interrupt at the terminal is for the parent to handle
        )
        theirs.close()
        self._socket.settimeout(_START_SECONDS)
        try:
            problem = self.ask({**setup, "folder": self._folder}).get("error", "")
        except OSError as error:
            problem = f"its process does not answer ({error})"
        if problem:
            self.close()
            raise EnvironmentFaultError(f"{setup['paths'][0]} cannot be imported in a process of its own: {problem}.")
        self._socket.settimeout(_END_SECONDS)

    def is_alive(self) -> bool:
        """Whether it can fork workers."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Its answer to a request.

        Raises:
            OSError: it is gone.
        """
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("it has ended")
            except OSError:
                self._process.kill()  # its workers end with it
                raise
        return dict(json.loads(data))

    def close(self) -> None:
        """End it and all workers, and remove their folders."""
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        remove_folder(self._folder)


class _Worker:
    """The parent's side of a worker. What it says is data: a line that is no reply to what was asked ends it.

    Raises:
        EnvironmentFaultError: it does not start.
    """

    def __init__(self, server: _Server, seed: int) -> None:
        self._server = server
        self._data = bytearray()
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                started = server.ask({"seed": seed}, [theirs.fileno()])
            except OSError as error:
                started = {"error": error}
        if "error" in started:
            self._socket.close()
            raise EnvironmentFaultError(f"No process for an episode could be started: {started['error']}.")
        self._pid = int(started["pid"])

    def ask(
        self, kind: str, calls: Sequence[Mapping[str, JsonValue]], seconds: float, limit: int
    ) -> tuple[list[dict[str, Any] | None], str]:
        """Replies to calls, and why some have none: `timeout` or `tool_died`. After either it is of no more use.

        Args:
            kind: `reset`, `calls`, `reward` or `close`.
            calls: names and arguments.
            seconds: for all of them.
            limit: characters of a reply's text.
        """
        token = secrets.token_hex(16)
        request = {"token": token, "kind": kind, "calls": calls, "limit": limit}
        replies: list[dict[str, Any] | None] = [None] * len(calls)
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(request, default=str).encode() + b"\n")
            while None in replies:
                reply = _checked(json.loads(self._line(deadline, 6 * limit + 1000)), token, limit)
                replies[reply["index"]] = reply
        except TimeoutError:
            return replies, "timeout"
        except (OSError, ValueError, IndexError, RecursionError):
            return replies, "tool_died"
        return replies, ""

    def _line(self, deadline: float, most: int) -> bytes:
        while (end := self._data.find(b"\n")) < 0:
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
            chunk = self._socket.recv(1 << 16)
            if not chunk or len(self._data) > most:
                raise ConnectionError
            self._data += chunk
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line

    def close(self) -> None:
        """End its process group, and remove its folder."""
        self._socket.close()
        with suppress(OSError):  # the server is gone, and so is the worker
            self._server.ask({"end": self._pid})


def _checked(reply: object, token: str, limit: int) -> dict[str, Any]:
    """A reply to the request of the token.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(reply, dict) or reply.get("token") != token:
        raise ValueError
    index, text, size, value = (reply.get(name) for name in ("index", "text", "size", "value"))
    if not isinstance(text, str | None) or not isinstance(value, float | None):
        raise ValueError
    if type(index) is not int or type(size) is not int or min(index, size) < 0:
        raise ValueError
    text = None if text is None else text[:limit]
    return {"index": index, "text": text, "size": size, "value": value, "error": reply.get("error") is True}


def _single_paths(path: str) -> list[str]:
    """`FILE.py:NAME` for each name, with the file from the root, as it is found from everywhere."""
    where, colon, names = path.rpartition(":")
    where = str(Path(where).resolve()) if where.endswith(".py") and Path(where).is_file() else where
    return [f"{where}:{name.strip()}" for name in names.split(",")] if colon else [path]


def _class_tools(factory: type, path: str) -> tuple[ToolSpec, ...]:
    """The tools of a class.

    Raises:
        ConfigError: a method that cannot be offered.
    """
    methods = inspect.getmembers(factory, lambda one: inspect.isfunction(one) or inspect.ismethod(one))
    public = [(name, one) for name, one in methods if not name.startswith("_") and name not in _NOT_TOOLS]
    if silent := [name for name, one in public if not inspect.getdoc(one)]:
        log.warning("%s: without a docstring these are not offered as tools: %s.", path, ", ".join(silent))
    return tuple(_spec(one, path) for name, one in public if name not in silent)


def check_types(function: Any) -> None:
    """Refuse parameters that a call's JSON is not turned into.

    Raises:
        TypeError: a parameter of another class than JSON has, or one that cannot be given by name.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"parameter '{name}' is positional only")
    hints = get_type_hints(function)
    waiting = [(name, hint) for name, hint in hints.items() if name != "return"]
    for name, hint in waiting:
        if inspect.isclass(hint) and not get_args(hint) and not is_typeddict(hint) and hint not in _JSON_TYPES:
            raise TypeError(f"parameter '{name}' has the type {hint.__name__}, into which no argument is turned")
        if get_origin(hint) is not Literal:
            waiting += [(name, inner) for inner in get_args(hint) if inner is not Ellipsis]


def _spec(function: Any, path: str) -> ToolSpec:
    """What the prompt says of a function.

    Raises:
        ConfigError: it has no docstring, or a parameter has no type hint or no description.
    """
    try:
        check_types(function)
        return ToolSpec(get_json_schema(function))
    except Exception as error:
        name = getattr(function, "__name__", function)
        raise ConfigError(
            f"environment.path: {path}: '{name}' cannot be offered as a tool ({error}). Give it a docstring, and every "
            "parameter a type hint and a line under Args:."
        ) from error
