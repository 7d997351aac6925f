"""The processes that run a user's tools: a server that imports them once, and forks a worker for each episode.

Run as `python -m src.environments.python_worker DESCRIPTOR`, of a socket to the parent. Messages on it are JSON: what
to import, then for each episode a seed with a socket for its worker, and `end`. When the parent is gone, all ends.

A worker answers requests, JSON lines on its socket, with a line for each call as it ends, which repeats the request's
token. It has a process group, a folder, limits, and nothing on stdin, stdout and stderr. What tools start ends with the
worker, in other process groups too; a daemon that detaches itself ends when any worker does. All this keeps a run going
and is no wall: tools may read what the user may read.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from src.rewards.functions.user_function import find

_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36
_STARTS_A_PROCESS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")
_prctl = ctypes.CDLL(None).prctl
_Calls = Iterable[tuple[int, Callable[..., Any], Mapping[str, Any]]]


def main() -> None:
    """Serve the parent until it closes its end."""
    parent = socket.socket(fileno=int(sys.argv[1]))
    setup = json.loads(parent.recv(1 << 20))
    _prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.path += [entry for entry in setup["sys_path"] if entry not in sys.path]
    try:
        found = [find("environment.path", path) for path in setup["paths"]]
    except BaseException as error:  # noqa: BLE001 - also of a file that exits
        parent.send(json.dumps({"error": _error_text(error)[:10_000]}).encode())
        return
    gc.collect()
    gc.freeze()
    parent.send(b"{}")
    folders: dict[int, str] = {}
    while message := _received(parent):
        request, descriptors = message
        if "end" in request:
            _end(request["end"], folders)
            parent.send(b"{}")
            continue
        try:
            folder = tempfile.mkdtemp(dir=setup["folder"])
            pid = os.fork()
        except OSError as error:  # the machine has no room
            os.close(descriptors[0])
            parent.send(json.dumps({"error": str(error)}).encode())
            continue
        if pid == 0:
            with suppress(BaseException):
                parent.close()
                _work(found, socket.socket(fileno=descriptors[0]), folder, setup, request["seed"])
            os._exit(0)
        with suppress(OSError):  # the worker does the same; whoever is first
            os.setpgid(pid, pid)
        os.close(descriptors[0])
        folders[pid] = folder
        parent.send(json.dumps({"pid": pid}).encode())
    for pid in list(folders):
        _end(pid, folders)
    remove_folder(setup["folder"])


def _received(parent: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The parent's next request; None: it is gone."""
    data, descriptors, _, _ = socket.recv_fds(parent, 1 << 16, 1)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return (json.loads(data), descriptors) if data else None


def _end(worker: int, folders: dict[int, str]) -> None:
    """End a worker with all that it started, and remove its folder."""
    if worker not in folders:
        return
    with suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    folder = folders.pop(worker)
    while strays := set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())) - folders.keys():
        for stray in strays:  # what they leave behind comes here in turn
            os.kill(stray, signal.SIGKILL)
            os.waitpid(stray, 0)
    remove_folder(folder)


def remove_folder(folder: str) -> None:
    """Remove a folder, which may be nested deeply, and from which permissions may be taken away."""
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(folder):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL)


def _work(found: list[Any], channel: socket.socket, folder: str, setup: Mapping[str, Any], seed: int) -> None:
    """Be a worker until the parent closes the channel."""
    with suppress(OSError):
        os.setpgid(0, 0)
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    with suppress(OSError):  # the first to go where the machine has no memory left
        Path("/proc/self/oom_score_adj").write_text("1000")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir(folder)
    os.environ |= {"HOME": folder, "TMPDIR": folder}
    tempfile.tempdir = None
    started = mmap.mmap(-1, 1 << 16)
    _limit(setup["memory_limit_mb"] << 20, started, setup["process_limit"])
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % (1 << 32))
    worker = _Worker(found, channel, folder, seed)
    os.register_at_fork(after_in_child=lambda: os.close(channel.detach()))  # what a tool forks cannot answer for it
    for line in channel.makefile("rb"):
        started[:] = bytes(len(started))
        worker.answer(json.loads(line))


def _limit(memory: int, started: mmap.mmap, process_limit: int) -> None:
    """Put limits on this process and those that it starts.

    Args:
        memory: bytes of address space beyond what is there, and of a file.
        started: shared with all processes that this one forks; a byte for each that is started.
        process_limit: processes that may be started until `started` is cleared.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = memory + pages * resource.getpagesize()
    for kind, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, memory)):
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, limit))
    group = os.getpgid(0)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS_A_PROCESS:
            count = started.find(b"\0")
            if not 0 <= count < process_limit:
                raise PermissionError(f"more than {process_limit} processes")
            started[count] = 1
        elif event in ("os.kill", "os.killpg") and arguments[0] not in (0, group) and os.getpgid(arguments[0]) != group:
            raise PermissionError("a signal to another process")

    sys.addaudithook(refuse)


class _Worker:
    """The tools of an episode, and replies about them.

    Args:
        found: a class, or functions.
        channel: to the parent.
        folder: which no error shows.
        seed: of the episode.
    """

    def __init__(self, found: list[Any], channel: socket.socket, folder: str, seed: int) -> None:
        self._found = found
        self._channel = channel
        self._folder = folder
        self._seed = seed
        self._pid = os.getpid()
        self._runner = asyncio.Runner()
        self._instance: Any = None
        self._request: Mapping[str, Any] = {}
        self._open: set[int] = set()

    def answer(self, request: Mapping[str, Any]) -> None:
        """Run what a request asks for, and reply to each of its calls."""
        self._request = request
        self._open = set(range(len(request["calls"])))
        try:
            self._run([(i, call["name"], call["arguments"]) for i, call in enumerate(request["calls"])])
        except BaseException as error:  # noqa: BLE001 - e.g. a tool that stops the event loop
            for index in sorted(self._open):
                self._fail(index, error)

    def _run(self, calls: list[tuple[int, str, Mapping[str, Any]]]) -> None:
        if self._request["kind"] == "reset":
            self._instance = self._found[0]()
            calls = [(0, "reset", _taken(self._instance.reset, calls[0][2], self._seed))]
        owner = self._instance
        tools = (
            {one.__name__: one for one in self._found} if owner is None else {n: getattr(owner, n) for _, n, _ in calls}
        )
        found = [(index, tools[name], arguments) for index, name, arguments in calls]
        for is_async, group in groupby(found, lambda call: inspect.iscoroutinefunction(call[1])):
            if is_async:
                self._runner.run(self._together(group))
                continue
            for index, tool, arguments in group:
                try:
                    value = tool(**arguments)
                    if inspect.isawaitable(value):
                        value = self._runner.run(_awaited(value))
                    self._give(index, value)
                except BaseException as error:  # noqa: BLE001 - also SystemExit
                    self._fail(index, error)

    async def _together(self, calls: _Calls) -> None:
        """Run async tools side by side."""

        async def one(index: int, tool: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
            try:
                self._give(index, await tool(**arguments))
            except BaseException as error:  # noqa: BLE001 - also SystemExit
                self._fail(index, error)

        await asyncio.gather(*(one(*call) for call in calls))

    def _give(self, index: int, value: Any) -> None:
        """Reply with what a tool returned."""
        kind = self._request["kind"]
        if kind == "reset" and not isinstance(value, str | None):
            raise TypeError(f"expected text for the prompt, or None, found {value!r:.100}")
        if kind != "reward":
            self._reply(index, None if value is None and kind == "reset" else _text(value))
            return
        if isinstance(value, str | bytes):
            raise TypeError(f"expected a number, found {value!r:.100}")
        self._reply(index, "", value=None if value is None else float(value))

    def _fail(self, index: int, error: BaseException) -> None:
        """Reply with what a tool raised."""
        self._reply(index, _error_text(error).replace(self._folder, "…"), error=True)

    def _reply(self, index: int, text: str | None, **more: Any) -> None:
        if os.getpid() != self._pid:
            os._exit(1)
        limit = self._request["limit"]
        said = None if text is None else text[:limit].encode("utf-8", "replace").decode()
        about = {"token": self._request["token"], "index": index, "text": said, "size": len(text or ""), **more}
        self._channel.sendall(json.dumps(about, ensure_ascii=False).encode() + b"\n")
        self._open.discard(index)


def _taken(reset: Callable[..., Any], row: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The columns of a row that `reset` takes, and the seed if it names that."""
    parameters = inspect.signature(reset).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    given = {"seed": seed, **row}
    return {name: value for name, value in given.items() if name in parameters or (takes_all and name in row)}


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _text(value: Any) -> str:
    """What a tool returned, as text: JSON where it can be."""
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass the text itself
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except Exception:  # noqa: BLE001 - a value that is no JSON
        return re.sub(r" at 0x[0-9a-f]+", "", str.__str__(str(value)))


def _error_text(error: BaseException) -> str:
    """An exception's type and message."""
    name = "an exception"
    with suppress(BaseException):
        name = str(type(error).__name__)
        if message := str.__str__(str(error)):
            return f"{name}: {message}"
    return name


if __name__ == "__main__":
    main()
