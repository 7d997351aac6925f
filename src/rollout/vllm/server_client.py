"""HTTP to a vLLM server: requests, how long to wait for one that is gone, and what to say then. Knows no model."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import httpx

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_CONNECT_S = 10.0
_ATTEMPTS = 3
_IDLE_S = 2.0
"""Connections are not kept longer; the server closes them after 5 s."""


class ServerError(RuntimeError):
    """The server answers, but not with what was asked for: a refused request, or not the server that this run needs."""


class ServerLostError(RuntimeError):
    """The server does not answer."""


class ServerClient:
    """Requests to one server, from any thread.

    Args:
        url: of the server.
        timeout_s: seconds to wait for one answer.
        max_connections: requests under way at once.
        start_command: starts such a server; errors name it.
    """

    def __init__(self, url: str, *, timeout_s: float, max_connections: int, start_command: str) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.start_command = start_command
        self.last_answer = time.monotonic()
        """`time.monotonic()` of the last answer of any kind."""
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=_IDLE_S),
            trust_env=False,  # a proxy for the outside world does not know the cluster's hosts
        )
        # vLLM answers a failure and then closes the connection: whether it lives is asked on one of its own
        self._health = httpx.Client(
            base_url=self.url,
            timeout=self._http.timeout,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    def get(self, path: str, **query: str) -> Any:
        """JSON of a GET; raises as `post`."""
        return self._send("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """JSON of a POST.

        Raises:
            ServerError: the server answers with an error, and lives.
            ServerLostError: it does not answer, or its engine has died.
        """
        return self._send("POST", path, json=body, params=query)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._health.close()

    def _send(self, method: str, path: str, **content: Any) -> Any:
        what = f"rollout.url {self.url}: {method} {path}"
        response = self._response(what, method, path, content)
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and not self._healthy():
            raise ServerLostError(f"{what} was answered with {response.status_code}, and the server's engine is dead.")
        self.last_answer = time.monotonic()
        if response.is_success:
            return response.json() if response.content else None
        reason = response.text.strip()[:1000]
        raise ServerError(
            f"{what} was answered with {response.status_code}: {reason} Start the server with: {self.start_command}"
        )

    def _response(self, what: str, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        """An answer of any status. vLLM may break a connection off where it fails, and live on."""
        broken: httpx.TransportError | None = None
        for _ in range(_ATTEMPTS):
            try:
                return self._http.request(method, path, **content)
            except httpx.TransportError as error:
                broken = error
                if isinstance(error, httpx.TimeoutException | httpx.ConnectError) or not self._healthy():
                    raise ServerLostError(f"{what} got no answer ({type(error).__name__}: {error}).") from error
        raise ServerError(
            f"{what} was broken off {_ATTEMPTS} times ({broken}), but the server lives; its own log says why."
        ) from broken

    def _healthy(self) -> bool:
        try:
            return self._health.get("/health").is_success
        except httpx.TransportError:
            return False


class Patience:
    """How long a server that is gone may take to come back: `timeout_s` since its last answer.

    Args:
        client: of the server.
    """

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self._started = time.monotonic()
        self._pause = _FIRST_PAUSE_S
        self.attempts = 0
        """How often `wait` was called."""

    def wait(self, error: ServerLostError) -> None:
        """Pause before the next attempt, longer each time.

        Raises:
            ServerLostError: the time is over.
        """
        client = self._client
        self.attempts += 1
        silent = time.monotonic() - max(client.last_answer, self._started)
        if silent + self._pause > client.timeout_s:
            raise ServerLostError(
                f"{error} Tried {self.attempts} times, the last answer was {silent:.0f} s ago "
                f"(rollout.timeout_s={client.timeout_s:g}). Is the server running, and can this machine reach it? "
                f"Start it with: {client.start_command}"
            ) from error
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
