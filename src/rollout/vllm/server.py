"""Rollout engine over HTTP: a vLLM server on other devices or another machine, weights through a shared folder.

Token ids go in and come out (`/inference/v1/generate`). The server stamps every sampled token with the version of its
weights. A server that was restarted has lost them, and the stamp tells: such answers are thrown away, the server gets
the last weights again, and the prompts are asked once more with the same seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from src.rollout.engine import Completion, EngineSource, SamplingParams
from src.rollout.vllm.requests import LogprobsMode, check_mode, check_request, completion, sampling_fields
from src.rollout.vllm.server_client import Patience, ServerClient, ServerError, ServerLostError
from src.rollout.vllm.weights_folder import WeightsFolder

log = logging.getLogger(__name__)

_STALE_ROUNDS = 3
_INCOMPLETE = "incomplete"


def vllm_server_engine(
    source: EngineSource,
    *,
    url: str,
    weights_dir: str | Path,
    timeout_s: float = 600.0,
    max_connections: int = 64,
    shard_gib: float = 4.0,
    logprobs_mode: LogprobsMode = "processed_logprobs",
) -> VllmServerEngine:
    """The engine for a policy and a running server. Nothing is sent yet.

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
    check_mode(logprobs_mode)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"rollout.url: expected http://HOST:PORT, found '{url}'.")
    for name, value in (("timeout_s", timeout_s), ("max_connections", max_connections), ("shard_gib", shard_gib)):
        if value <= 0:
            raise ValueError(f"rollout.{name}: expected above 0, found {value}.")
    dtype = str(source.dtype).removeprefix("torch.")
    client = ServerClient(
        url,
        timeout_s=timeout_s,
        max_connections=max_connections,
        start_command=f"VLLM_SERVER_DEV_MODE=1 vllm serve {source.folder} --tokens-only --dtype {dtype} "
        f"--logprobs-mode {logprobs_mode} --load-format dummy",
    )
    folder = WeightsFolder(Path(weights_dir).resolve(), source.dtype, shard_bytes=int(shard_gib * 2**30))
    return VllmServerEngine(source, client, folder, logprobs_mode=logprobs_mode, max_connections=max_connections)


class VllmServerEngine:
    """Samples with a vLLM server; see `RolloutEngine` and `vllm_server_engine`.

    Args:
        source: what the server must serve.
        client: of the server.
        folder: through which the weights go.
        logprobs_mode: what the server must give.
        max_connections: prompts under way at once.
    """

    def __init__(
        self,
        source: EngineSource,
        client: ServerClient,
        folder: WeightsFolder,
        *,
        logprobs_mode: LogprobsMode,
        max_connections: int,
    ) -> None:
        self._source = source
        self._client = client
        self._folder = folder
        self._logprobs_mode = logprobs_mode
        self._max_connections = max_connections
        self._max_model_len: int | None = None
        self._weights: Path | None = None
        self._weights_version = -1

    @property
    def copies_weights(self) -> bool:
        """Always: the server has its own."""
        return True

    @property
    def ranks_per_engine(self) -> int:
        """Always 1: every rank sends its own requests."""
        return 1

    @property
    def weights_version(self) -> int:
        """Version given with the last `update_weights`; -1 before the first."""
        return self._weights_version

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Sample `params.n` completions for each prompt; see `RolloutEngine.generate`.

        Greedy completions of a prompt are equal, so one is decoded and listed n times.

        Args:
            prompts: int64 [P_i] each, on any device.
            params: how to sample.
            seeds: one a prompt.

        Raises:
            RuntimeError: no weights were given yet.
            ServerError: the server refuses a request, is not the one that this run needs, or keeps losing the weights.
            ServerLostError: it does not answer for `timeout_s`.
            ValueError: see `check_request`.
        """
        if self._weights is None:
            raise RuntimeError("generate: the vLLM server has no weights of this run. Call update_weights first.")
        weights = self._weights
        check_request(prompts, params, seeds, logprobs_mode=self._logprobs_mode, max_model_len=self._context())
        answers: dict[int, list[Completion]] = {}

        def ask() -> None:
            rounds = 0
            while len(answers) < len(prompts):
                self._restore(weights)
                known = len(answers)
                missing = [index for index in range(len(prompts)) if index not in answers]
                bodies = {index: _body(prompts[index], params, seeds[index], weights) for index in missing}
                self._ask(bodies, str(weights), answers)
                rounds = rounds + 1 if len(answers) == known else 0
                if rounds == _STALE_ROUNDS:
                    raise ServerError(
                        f"rollout.url {self._client.url}: expected completions from the weights {weights}, but in "
                        f"{rounds} attempts all came from others. Does another run use this server?"
                    )

        self._patiently(ask)
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
            self._folder.write(named_tensors, version)
            self._patiently(lambda: self._hand_over(weights))
            self._folder.keep_only(version)
        else:
            for _ in named_tensors:  # each tensor is gathered by all ranks together
                pass
        if dist.is_initialized():
            dist.barrier()
        self._weights, self._weights_version = weights, version

    def release_memory(self) -> None:
        """Nothing: the server's devices are its own."""

    def close(self) -> None:
        """Close the connections; the server runs on, and keeps the last weights."""
        self._client.close()

    def _patiently(self, attempt: Callable[[], None]) -> None:
        """Repeat what fails because the server is gone, until it comes back or the time is over."""
        patience = Patience(self._client)
        while True:
            try:
                attempt()
                return
            except ServerLostError as error:
                if patience.attempts == 0:
                    log.warning("%s Waiting for it to come back.", error)
                patience.wait(error)

    def _context(self) -> int:
        """Most tokens of prompt and completion that the server takes."""
        if self._max_model_len is None:
            self._patiently(self._check_server)
        assert self._max_model_len is not None
        return self._max_model_len

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
                self._weights_version,
            )
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]


def _body(prompt: Tensor, params: SamplingParams, seed: int, weights: Path) -> dict[str, Any]:
    """A request; the salt keeps what the server cached of other weights apart."""
    return {
        "token_ids": prompt.tolist(),
        "sampling_params": sampling_fields(params, seed),
        "cache_salt": weights.name,
        "stream": False,
    }
