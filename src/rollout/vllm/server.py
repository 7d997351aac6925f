"""Rollout engine over HTTP: a vLLM server on other devices or another machine, weights through a shared folder.

Token ids go in and come out (`/inference/v1/generate`). The server stamps every sampled token with the version of its
weights. A server that was restarted has lost them, and the stamp tells: such answers are thrown away, the server gets
the last weights again, and the prompts are asked once more with the same seeds.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from src.errors import ConfigError, Refusal
from src.models.loading.hub_names import in_hub_names
from src.rollout.engine import Completion, EngineSource, SamplingParams
from src.rollout.vllm.requests import LogprobsMode, check_mode, check_request, completion, sampling_fields
from src.runs.folder import GIB

log = logging.getLogger(__name__)

_STALE_ROUNDS = 3
_INCOMPLETE = "incomplete"
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_CONNECT_S = 10.0
_ATTEMPTS = 3
_IDLE_S = 2.0
"""Connections are not kept longer; the server closes them after 5 s."""


class ServerError(Refusal, RuntimeError):
    """The server answers, but not with what was asked for: a refused request, or not the server that this run needs."""


class ServerLostError(Refusal, RuntimeError):
    """The server does not answer."""


class VllmServerEngine:
    """Samples with a running vLLM server; see `RolloutEngine`. Sends nothing before the first `update_weights`.

    Args:
        source: the architecture and type that the server must have.
        url: of the server, e.g. `http://gpu7:8000`.
        weights_dir: folder that this run alone writes and the server reads, under the same path.
        timeout_s: seconds to wait for an answer, and for a server that is gone to come back.
        max_connections: prompts under way at once, on every rank.
        shard_gib: GiB of a file of weights, and of memory while it is written.
        logprobs_mode: see `check_request`; the server must have been started with it.

    Raises:
        ValueError: a setting that cannot work.
    """

    def __init__(
        self,
        source: EngineSource,
        *,
        url: str,
        weights_dir: str | Path,
        timeout_s: float = 600.0,
        max_connections: int = 64,
        shard_gib: float = 4.0,
        logprobs_mode: LogprobsMode = "processed_logprobs",
    ) -> None:
        check_mode(logprobs_mode)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"rollout.url: expected http://HOST:PORT, found '{url}'.")
        for name, value in (("timeout_s", timeout_s), ("max_connections", max_connections), ("shard_gib", shard_gib)):
            if value <= 0:
                raise ConfigError(f"rollout.{name}: expected above 0, found {value}.")
        dtype = str(source.dtype).removeprefix("torch.")
        start_command = (
            f"VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 vllm serve {source.folder} --tokens-only --dtype {dtype} "
            f"--logprobs-mode {logprobs_mode} --load-format dummy"
            + ("" if source.longest is None else f" --max-model-len {source.longest}")
        )
        self.copies_weights, self.ranks_per_engine = True, 1  # the server has its own; every rank asks for itself
        self.weights_version = -1
        self._source, self._logprobs_mode, self._max_connections = source, logprobs_mode, max_connections
        self._client = ServerClient(
            url, timeout_s=timeout_s, max_connections=max_connections, start_command=start_command
        )
        self._folder = WeightsFolder(Path(weights_dir).resolve(), source.dtype, shard_bytes=int(shard_gib * GIB))
        self._max_model_len: int | None = None
        self._weights: Path | None = None

    @property
    def context(self) -> int:
        """The server's `--max-model-len`."""
        if self._max_model_len is None:
            self._client.patiently(self._check_server)
        assert self._max_model_len is not None
        return self._max_model_len

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Sample `params.n` completions for each prompt; see `RolloutEngine.generate`.

        Greedy completions of a prompt are equal, so one is decoded and listed n times.

        Raises:
            RuntimeError: no weights were given yet.
            ServerError: the server refuses a request, is not the one that this run needs, or keeps losing the weights.
            ServerLostError: it does not answer for `timeout_s`.
            ValueError: see `check_request`.
        """
        if self._weights is None:
            raise RuntimeError("generate: the vLLM server has no weights of this run. Call update_weights first.")
        weights = self._weights
        check_request(prompts, params, seeds, logprobs_mode=self._logprobs_mode, max_model_len=self.context)
        answers: dict[int, list[Completion]] = {}

        def ask() -> None:
            rounds = 0
            while len(answers) < len(prompts):
                self._restore(weights)
                known = len(answers)
                missing = [index for index in range(len(prompts)) if index not in answers]
                bodies = {
                    index: {
                        "token_ids": prompts[index].tolist(),
                        "sampling_params": sampling_fields(params, seeds[index]),
                        "cache_salt": weights.name,  # keeps what the server cached of other weights apart
                        "stream": False,
                    }
                    for index in missing
                }
                self._ask(bodies, str(weights), answers)
                rounds = rounds + 1 if len(answers) == known else 0
                if rounds == _STALE_ROUNDS:
                    raise ServerError(
                        f"rollout.url {self._client.url}: expected completions from the weights {weights}, but in "
                        f"{rounds} attempts all came from others. Does another run use this server?"
                    )

        self._client.patiently(ask)
        copies = params.n if params.temperature == 0 else 1
        return [answers[index] * copies for index in range(len(prompts))]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the server new weights, and stamp what is sampled next with `version`.

        The first rank writes them to the folder and has the server read them, the others wait.

        Raises:
            ServerError: the server cannot load them, or is not the one that this run needs.
            ServerLostError: it does not answer for `timeout_s`.
        """
        weights = self._folder.path(version)
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._folder.write(in_hub_names(self._source.model, named_tensors), version)
            self._client.patiently(lambda: self._hand_over(weights))
            self._folder.keep_only(version)
        else:
            for _ in named_tensors:  # each tensor is gathered by all ranks together
                pass
        if dist.is_initialized():
            dist.barrier()
        self._weights, self.weights_version = weights, version

    def release_memory(self) -> None:
        """Nothing: the server's devices are its own."""

    def close(self) -> None:
        """Close the connections; the server runs on, and keeps the last weights."""
        self._client.close()

    def _check_server(self) -> None:
        """See that the server has the policy's architecture and type, and the right log-probabilities."""
        served = self._client.get("/server_info", config_format="json")["vllm_config"]["model_config"]
        settings = {"dtype": str(self._source.dtype), "logprobs_mode": self._logprobs_mode}
        for name, expected in settings.items():
            if served[name] != expected:
                raise ServerError(
                    f"rollout.url {self._client.url}: expected a server with {name} {expected}, found {served[name]}. "
                    f"Start it with: {self._client.start_command}"
                )
        self._max_model_len = int(served["max_model_len"])

    def _restore(self, weights: Path) -> None:
        """Hand the weights over again to a server that has others."""
        found = self._client.get("/weight_info")["weight_version"]
        if found != str(weights):
            log.warning(
                "rollout.url %s: expected the weights %s, found '%s' (a restarted server?). Handing them over again.",
                self._client.url,
                weights,
                found,
            )
            self._hand_over(weights)

    def _hand_over(self, weights: Path) -> None:
        """Have the server read the weights; until it is done, its answers bear no version of ours."""
        self._check_server()
        post = self._client.post
        post("/update_weight_version", {"new_version": _INCOMPLETE})
        try:
            # a server that started from random weights has a loader that reads none
            self._call("update_config", overrides={"load_config": {"load_format": "safetensors"}})
            self._call("reload_weights", weights_path=str(weights))
        except ServerError as error:
            raise ServerError(
                f"{error} The server could not load {weights}. It must see that folder under the same path, and serve "
                f"the architecture of {self._source.folder}; its own log says more. Restart it first: vLLM keeps parts "
                "of a load that failed."
            ) from error
        # what runs now started from other weights, and will be asked again
        if not post("/reset_prefix_cache", reset_running_requests="true")["success"]:
            raise ServerError(f"rollout.url {self._client.url}: the server kept its cache of the weights before.")
        post("/update_weight_version", {"new_version": str(weights)})

    def _call(self, method: str, **arguments: Any) -> None:
        """Call a method of the server's workers."""
        self._client.post("/collective_rpc", {"method": method, "kwargs": arguments})

    def _ask(self, bodies: Mapping[int, Any], weights: str, answers: dict[int, list[Completion]]) -> None:
        """Send one request a prompt, and add the answers from the right weights to `answers`."""
        with ThreadPoolExecutor(self._max_connections, thread_name_prefix="rollout") as pool:
            futures = {pool.submit(self._complete, body, weights): index for index, body in bodies.items()}
            try:
                for future in as_completed(futures):
                    completions = future.result()
                    if completions is not None:
                        answers[futures[future]] = completions
            except (ServerError, ServerLostError):
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, body: dict[str, Any], weights: str) -> list[Completion] | None:
        """The completions of one prompt; None if any token is from other weights."""
        choices = self._client.post("/inference/v1/generate", body)["choices"]
        if {span["version"] for choice in choices for span in choice["weight_versions"]} != {weights}:
            return None
        return [
            completion(
                choice["token_ids"],
                [token["logprob"] for token in choice["logprobs"]["content"]],
                choice["finish_reason"],
                self.weights_version,
            )
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]


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
        settings: dict[str, Any] = {
            "base_url": self.url,
            "timeout": httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            "trust_env": False,  # a proxy for the outside world does not know the cluster's hosts
        }
        limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=_IDLE_S)
        self._http = httpx.Client(**settings, limits=limits)
        # vLLM answers a failure and then closes the connection: whether it lives is asked on one of its own
        self._health = httpx.Client(**settings, limits=httpx.Limits(max_keepalive_connections=0))

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

    def patiently(self, attempt: Callable[[], None]) -> None:
        """Repeat what fails because the server is gone until it comes back, with longer and longer pauses.

        Raises:
            ServerLostError: it has not answered anything for `timeout_s`.
        """
        started, pause, attempts = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            try:
                attempt()
                return
            except ServerLostError as error:
                if attempts == 0:
                    log.warning("%s Waiting for it to come back.", error)
                attempts += 1
                silent = time.monotonic() - max(self.last_answer, started)
                if silent + pause > self.timeout_s:
                    raise ServerLostError(
                        f"{error} Tried {attempts} times, the last answer was {silent:.0f} s ago "
                        f"(rollout.timeout_s={self.timeout_s:g}). Is the server running, and can this machine reach "
                        f"it? Start it with: {self.start_command}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

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


class WeightsFolder:
    """A folder that one process writes and a server reads.

    Args:
        folder: made if missing; `version_*` in it belong to this object.
        dtype: of the tensors as written.
        shard_bytes: size of a file; a larger tensor has one of its own.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, *, shard_bytes: int) -> None:
        self.folder = folder
        self._dtype = dtype
        self._shard_bytes = shard_bytes

    def path(self, version: int) -> Path:
        """Where a version lies."""
        return self.folder / f"version_{version}"

    def write(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> Path:
        """Write a version. A reader sees all of it or nothing; one that is there already is replaced.

        Args:
            named_tensors: floating-point tensors of any device and type.
            version: of the weights.
        """
        partial = self.folder / f".version_{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shard: dict[str, Tensor] = {}
        size = count = 0
        for name, tensor in named_tensors:
            # a copy, so that two names of one tensor do not share memory, which the format refuses
            whole = tensor.detach().to("cpu", self._dtype, copy=True).contiguous()
            if shard and size + whole.nbytes > self._shard_bytes:
                save_file(shard, partial / f"weights-{count:05d}.safetensors")
                shard, size, count = {}, 0, count + 1
            shard[name] = whole
            size += whole.nbytes
        save_file(shard, partial / f"weights-{count:05d}.safetensors")
        target = self.path(version)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        return target

    def keep_only(self, version: int) -> None:
        """Remove all other versions."""
        for path in self.folder.glob("version_*"):
            if path != self.path(version):
                shutil.rmtree(path)
