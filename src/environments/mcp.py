"""`environment=mcp`: the tools of any server of the Model Context Protocol, by the official SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import psutil  # type: ignore[import-untyped]

from src.environments.answers import Result
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

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

log = logging.getLogger(__name__)

_MOST_PAGES = 100  # of a list of tools
_STDERR_LINES = 5
_PROBE_SECONDS = 10.0
_RETRY_SECONDS = 0.5
T = TypeVar("T")


class _Printed(logging.Filter):
    """Says once that a server prints to stdout; the SDK logs a traceback for each such line, and ignores it."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record of the SDK."""
        if not str(record.msg).startswith("Failed to parse JSONRPC message"):
            return True
        first, self._said = not self._said, True
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        record.msg = "An MCP server prints to stdout, which is for the protocol alone. Let it log on stderr. Ignored."
        return first


logging.getLogger("mcp.client.stdio").addFilter(_Printed())


class McpEnvironment:
    """Episodes with the tools of an MCP server, each with a connection of its own, and a process if it is started here.

    The calls of an answer run at the same time. Where one takes too long or the server ends, it is answered so, and so
    are all later calls of the episode, which goes on. The next episode has a new connection.

    Args:
        rows: a file of rows with a `prompt`, text or messages, and any other columns; or one for each split.
        command: starts a server that speaks on stdin and stdout, e.g. `[python, server.py]`. Its temporary folder is
            private and is removed at the end of the episode.
        url: of a server that runs already, by streamable HTTP. One of `command` and `url` is needed.
        reward: `FILE.py:NAME` or `package.module:NAME` of a function that is given a row and the messages of an
            episode, as OpenAI has them, and returns a number, or None for no reward; null: there is no reward.
        name: for logs and metrics.
        time_limit: seconds for the calls of an answer.
        start_limit: seconds for a connection. Where others have worked before, it is tried again for as long.
        concurrent: episodes that may start, or whose calls may run, at once.
        result_limit: characters of a result.
        variables: names of environment variables that a started server sees; all others but PATH and the like are
            hidden from it.
        headers: of HTTP; `$NAME` in one stands for a variable of the environment.
        turn_rewards: call the function after every answer, which earns the difference, not once at the end.
        success_at: the reward from which a task is done.

    Raises:
        ConfigError: the SDK is not installed, there is no function, or a key has another value than it may.
    """

    def __init__(
        self,
        rows: str | Mapping[str, str],
        command: Sequence[str] | str | None = None,
        url: str | None = None,
        *,
        reward: str | None = None,
        name: str = "mcp",
        time_limit: float = 30.0,
        start_limit: float = 60.0,
        concurrent: int = 16,
        result_limit: int = 8000,
        variables: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        turn_rewards: bool = False,
        success_at: float = 1.0,
    ) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            needs = "MCP servers need the package mcp"
            raise ConfigError(f"environment: {needs} ({error}): pip install mcp==2.3.0") from error
        if (command is None) == (url is None):
            raise ConfigError("environment: expected either command or url of an MCP server.")
        self.name = name
        self.command = shlex.split(command) if isinstance(command, str) else [str(word) for word in command or ()]
        self.url = url
        self.time_limit, self.start_limit, self.concurrent = time_limit, start_limit, concurrent
        above = [(one, getattr(self, one) > 0, "seconds above 0") for one in ("time_limit", "start_limit")]
        above.append(("concurrent", concurrent >= 1, "at least 1"))
        check_fields("environment", self, above)
        self.reward = None if reward is None else EpisodeReward(reward)
        self.parts = () if reward is None else ("environment",)
        self.variables = shown_variables(variables)
        self.headers = {key: os.path.expandvars(value) for key, value in (headers or {}).items()}
        self.hidden = [*self.variables.values(), *(word for value in self.headers.values() for word in value.split())]
        self._files = row_files(rows)
        self._episode = partial(
            ToolEpisode, result_limit=result_limit, turn_rewards=turn_rewards, success_at=success_at
        )
        self._tools: tuple[ToolSpec, ...] | None = None
        self._loop: _Loop | None = None
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()

    def splits(self) -> tuple[str, ...]:
        """See `Environment`."""
        return tuple(self._files)

    def tasks(self, split: str) -> Sequence[Task]:
        """See `Environment`."""
        return read_tasks(self._files, split, prompts=True)

    def opening(self, task: Task) -> Opening:
        """See `Environment`. The server is started for the first task alone: its tools are the same for all."""
        tools = self._tools or Opening.of(self.start(task, 0)).tools
        return Opening(tools, tuple(opening(task.row, f"{self.name}[{task.id}]")))

    def start(self, task: Task, seed: int) -> ToolEpisode:
        """See `Environment`. The seed is not used: a server has no place for it."""
        messages = opening(task.row, f"{self.name}[{task.id}]")
        until = time.monotonic() + self.start_limit
        while True:
            with self._lock:
                self._loop = self._loop or _Loop()
                connection = _Connection(self, self._loop, task.row)
                self._open.add(connection)
            try:
                tools = connection.open()
                self._tools = self._tools or tools
                break
            except EnvironmentFaultError as error:
                if self._tools is None or time.monotonic() > until:  # it never worked, or is gone for good
                    raise
                log.warning("%s Trying again.", error)
                time.sleep(_RETRY_SECONDS)
        return self._episode(tools, messages, connection)

    def forget(self, connection: _Connection) -> None:
        """Take a connection that is closed off the list of those that `close` closes."""
        self._open.discard(connection)

    def close(self) -> None:
        """See `Environment`. Closes the connections of open episodes too."""
        for connection in list(self._open):
            connection.close()
        with self._lock:
            if self._loop is not None:
                self._loop.close()
                self._loop = None


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _Connection:
    """See `Connection`: a session with a server."""

    def __init__(self, environment: McpEnvironment, loop: _Loop, row: Mapping[str, JsonValue]) -> None:
        self._environment = environment
        self._loop = loop
        self._row = row
        self._folder = Path(tempfile.mkdtemp(prefix="episode-"))
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._closed = False
        self.lost = ""
        self.hidden = [str(self._folder), *environment.hidden]

    def open(self) -> tuple[ToolSpec, ...]:
        """Connect; the server's tools.

        Raises:
            EnvironmentFaultError: there is no server, or it does not answer.
        """
        try:
            return self._loop.run(self._start())
        except BaseException:
            self.close()
            raise

    def run(self, calls: Sequence[ToolCall]) -> list[Result]:
        """See `Connection`."""
        if self._client is None:
            return [Result.missing("tool_died", self._environment.time_limit)] * len(calls)
        return self._loop.run(self._together(self._client, calls))

    def reward(self, history: Sequence[Message]) -> float | None:
        """See `Connection` and `EpisodeReward`."""
        return None if self._environment.reward is None else self._environment.reward(self._row, history)

    def close(self) -> None:
        """See `Connection`. Waits for a started server to end, and ends what it left behind."""
        if self._closed:
            return
        self._closed, self._client = True, None
        self._loop.run(self._stop())
        if self._environment.command:
            _end_processes(str(self._folder))
        remove_folder(str(self._folder))
        self._environment.forget(self)

    async def _start(self) -> tuple[ToolSpec, ...]:
        ready: asyncio.Future[tuple[ToolSpec, ...]] = asyncio.get_running_loop().create_future()
        self._scope = anyio.CancelScope()
        self._task = asyncio.create_task(self._serve(ready, self._scope))
        limit = self._environment.start_limit
        await asyncio.wait((self._task, ready), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return ready.result()
        error = self._task.exception() if self._task.done() else None
        await self._stop()
        reason = f"no answer within {limit:g} seconds" if error is None else _first(error)
        raise EnvironmentFaultError(self._fault(reason))

    async def _stop(self) -> None:
        if self._scope is not None and self._task is not None:
            self._scope.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self, ready: asyncio.Future[tuple[ToolSpec, ...]], scope: anyio.CancelScope) -> None:
        """Hold the connection until the scope is cancelled. The SDK wants it opened and closed by the same task."""
        from mcp import Client

        with scope:
            async with self._transport() as transport, Client(transport) as client:
                self._client = client
                ready.set_result(await _listed(client))
                await anyio.sleep_forever()

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        import httpx2
        from mcp import StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        if self._environment.url is not None:
            timeout = httpx2.Timeout(self._environment.start_limit, read=None)
            async with httpx2.AsyncClient(headers=self._environment.headers, timeout=timeout) as http:
                yield streamable_http_client(self._environment.url, http_client=http)
            return
        command, *words = self._environment.command
        ours = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
        variables = {"PATH": ours, **self._environment.variables, "TMPDIR": str(self._folder)}  # `python` is this one
        with (self._folder / "stderr").open("w") as stderr:
            parameters = StdioServerParameters(
                command=command, args=words, env=variables, encoding_error_handler="replace"
            )
            yield stdio_client(parameters, errlog=stderr)

    def _fault(self, reason: str) -> str:
        if self._environment.url is not None:
            return f"The MCP server at {self._environment.url} cannot be reached: {reason}."
        said: list[str] = []
        with suppress(OSError):
            said = (self._folder / "stderr").read_text(errors="replace").splitlines()[-_STDERR_LINES:]
        lines = "\n".join(line[:500] for line in said) or "(nothing)"
        return f"The MCP server `{shlex.join(self._environment.command)}` does not start: {reason}. On stderr:\n{lines}"

    async def _together(self, client: Client, calls: Sequence[ToolCall]) -> list[Result]:
        results = await asyncio.gather(*(_called(client, call, self._environment.time_limit) for call in calls))
        if any(result.problem in ("timeout", "tool_died") for result in results):
            self._client = None
            if self._scope is not None:
                self._scope.cancel()
        return results


async def _called(client: Client, call: ToolCall, seconds: float) -> Result:
    """What came of a call. Raises on nothing that a server does."""
    from mcp import MCPError

    try:
        with anyio.fail_after(seconds):
            return _result(await client.call_tool(call.name, dict(call.parameters)))
    except TimeoutError:
        return Result.missing("timeout", seconds)
    except MCPError as error:
        reason = error.message
    except Exception as error:  # noqa: BLE001 - a result that breaks the protocol is the server's doing
        reason = f"the server's result is not valid ({type(error).__name__})"
    return _error(reason) if await _answers(client) else Result.missing("tool_died", seconds)


async def _answers(client: Client) -> bool:
    """Whether the server is there. A protocol error does not tell: servers use its codes for their own errors too."""
    try:
        with anyio.fail_after(_PROBE_SECONDS):
            await client.list_tools(cache_mode="bypass")
    except Exception:  # noqa: BLE001 - whatever it is, the server is of no more use
        return False
    return True


async def _listed(client: Client) -> tuple[ToolSpec, ...]:
    """All tools of a server."""
    tools, cursor = [], None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        if (cursor := page.next_cursor) is None:
            break
    described = [(tool.name, tool.description or "", tool.input_schema) for tool in tools]
    return tuple(ToolSpec({"name": name, "description": about, "parameters": it}) for name, about, it in described)


def _result(found: CallToolResult) -> Result:
    """A result as text: its texts, or else its structured content; what is no text is named."""
    texts = []
    for block in found.content:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "resource":
            about = f"[resource {block.resource.uri}, not included]"
            texts.append(getattr(block.resource, "text", about))
        elif block.type == "resource_link":
            texts.append(f"[resource {block.uri}, not included]")
        else:
            texts.append(f"[{block.type} {block.mime_type}, not included]")
    if not texts and found.structured_content is not None:
        texts.append(json.dumps(found.structured_content, ensure_ascii=False))
    text = "\n".join(texts)
    return _error(text) if found.is_error else Result(text)


def _error(text: str) -> Result:
    return Result(text if text.startswith("Error") else f"Error: {text}", "tool_error")


def _first(error: BaseException) -> str:
    """The first error of those that a task group raised together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _end_processes(folder: str) -> None:
    """End all processes whose temporary folder it is: those that a server started, in groups of their own too."""
    for _ in range(10):  # one may start another meanwhile
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TMPDIR") == folder:
                    process.kill()
                    found.append(process)
        if not found:
            return
        psutil.wait_procs(found, timeout=1.0)
