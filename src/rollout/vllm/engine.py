"""Rollout engine in this process: vLLM, one engine a rank, or one for several ranks (tensor parallelism).

The only module that imports vllm, and it does so when the engine is made: at the first `update_weights`, after the
Trainer has set up torch.distributed, which vLLM then uses instead of a group of its own.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from src.errors import ConfigError
from src.models.loading.hub_names import in_hub_names
from src.rollout.engine import Completion, EngineSource, SamplingParams
from src.rollout.vllm.requests import (
    LogprobsMode,
    check_mode,
    check_request,
    check_size,
    completion,
    require_vllm,
    sampling_fields,
)
from src.runs.folder import GIB

_SHARE, _SEQUENCES = 0.45, 256


def vllm_engine(
    source: EngineSource,
    *,
    gpu_memory_utilization: float | None = None,
    kv_cache_gib: float | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    tensor_parallel_size: int = 1,
    enforce_eager: bool = False,
    enable_prefix_caching: bool = True,
    sleep: bool | None = None,
    sleep_level: Literal[1, 2] = 2,
    logprobs_mode: LogprobsMode = "processed_logprobs",
    load_format: str = "dummy",
    engine_args: Mapping[str, Any] | None = None,
) -> VllmEngine:
    """The engine for a policy. Nothing is started yet.

    Args:
        source: its architecture and type; the weights come with `update_weights`.
        gpu_memory_utilization: share of the device's memory for weights, activations and cache together; None: 0.45. A
            training's memory plan gives another (`wings.memory.colocation`).
        kv_cache_gib: GiB for the key/value cache alone, in place of that share; needed on a CPU, where it is 1 if null.
        max_model_len: most tokens of prompt and completion; None: `source.longest`.
        max_num_seqs: completions that decode together; None: 256, or as the memory plan says.
        tensor_parallel_size: consecutive ranks that are one engine.
        enforce_eager: no CUDA graphs: less memory and a faster start, slower decoding.
        enable_prefix_caching: a prompt's completions share its keys and values.
        sleep: give weights and cache back from `release_memory` to `update_weights`; None: on a GPU.
        sleep_level: 2 drops the weights, 1 keeps a copy in host memory.
        logprobs_mode: see `check_request`.
        load_format: of the weights before the first update; `dummy` reads none.
        engine_args: further arguments of `vllm.LLM`, unchanged.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: a setting that cannot work.
    """
    require_vllm()
    check_mode(logprobs_mode)
    on_gpu = torch.accelerator.is_available()
    if sleep and not on_gpu:
        raise ConfigError(
            "rollout.sleep=true: expected an accelerator, found none; vLLM cannot sleep on a CPU. Set it to null."
        )
    check_size(gpu_memory_utilization, max_num_seqs)
    if tensor_parallel_size < 1:
        raise ConfigError(f"rollout.tensor_parallel_size: expected at least 1, found {tensor_parallel_size}.")
    if kv_cache_gib is None and not on_gpu:
        kv_cache_gib = 1.0
    arguments: dict[str, Any] = {
        "model": source.folder,
        "dtype": str(source.dtype).removeprefix("torch."),
        "trust_remote_code": source.trust_remote_code,
        "gpu_memory_utilization": _SHARE if gpu_memory_utilization is None else gpu_memory_utilization,
        "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * GIB),
        "max_model_len": source.longest if max_model_len is None else max_model_len,
        "max_num_seqs": max_num_seqs or _SEQUENCES,
        "tensor_parallel_size": tensor_parallel_size,
        "enforce_eager": enforce_eager,
        "enable_prefix_caching": enable_prefix_caching,
        "enable_sleep_mode": on_gpu if sleep is None else sleep,
        "logprobs_mode": logprobs_mode,
        "load_format": load_format,
        "skip_tokenizer_init": True,  # token ids in and out
        "generation_config": "vllm",  # no sampling defaults from the model's folder
    }
    if load_format == "dummy":  # a checkpoint that is quantised is trained, and comes, in plain weights
        arguments["hf_overrides"] = {"quantization_config": None}
    if not on_gpu:  # after a prompt in pieces vLLM rewinds its request's generator, which those of a CPU cannot
        arguments["enable_chunked_prefill"] = False
    return VllmEngine(arguments | dict(engine_args or {}), source.model, sleep_level)


class VllmEngine:
    """Samples with vLLM in this process; see `RolloutEngine` and `vllm_engine`.

    Args:
        arguments: of `vllm.LLM`.
        model: whose weights it gets; tells their names on the hub, which vLLM reads.
        sleep_level: see `vllm_engine`.
    """

    def __init__(self, arguments: Mapping[str, Any], model: PreTrainedModel, sleep_level: Literal[1, 2] = 2) -> None:
        self._arguments, self._model, self._sleep_level = dict(arguments), model, sleep_level
        self.copies_weights = True  # vLLM lays weights out in its own way
        self.ranks_per_engine = int(arguments["tensor_parallel_size"])
        self._llm: Any = None
        self._peers: dist.ProcessGroup | None = None
        self.weights_version = -1
        self._has_weights = arguments["load_format"] != "dummy"
        self._asleep = False
        self._owns_group = False

    @property
    def context(self) -> int:
        """The engine's own `max_model_len`."""
        return int(self._engine().model_config.max_model_len)

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Sample `params.n` completions for each prompt; see `RolloutEngine.generate`.

        Greedy completions of a prompt are equal, so one is decoded and listed n times. Ranks that are one engine call
        together and with equal `params`, each with its own prompts or none; each gets its own completions.

        Raises:
            RuntimeError: there are no weights: none were given, the last update failed, or the engine is asleep.
            ValueError: see `check_request`.
        """
        if not self._has_weights:
            raise RuntimeError("generate: the vLLM engine has no weights. Call update_weights first.")
        llm = self._engine()
        check_request(
            prompts,
            params,
            seeds,
            logprobs_mode=self._arguments["logprobs_mode"],
            max_model_len=self.context,
        )
        own = [(tuple(prompt.tolist()), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        requests = self._all_requests(own, params)
        if not requests:
            return []
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        with process_state_kept():
            outputs = llm.generate(
                [{"prompt_token_ids": list(ids)} for ids, _ in requests],
                [
                    VllmSamplingParams(**sampling_fields(params, seed), output_kind=RequestOutputKind.FINAL_ONLY)
                    for _, seed in requests
                ],
                use_tqdm=False,
            )
        answers = {request: self._completions(output) for request, output in zip(requests, outputs, strict=True)}
        copies = params.n if params.temperature == 0 else 1
        return [answers[request] * copies for request in own]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights, layer by layer as they come, and stamp what is sampled next with `version`.

        Wakes the engine. What the cache holds of the old weights is dropped. vLLM does not say whether all weights were
        there; compare log-probabilities (`rollout.probe`).

        Raises:
            RuntimeError: the cache could not be dropped.
        """
        llm = self._engine()
        self._has_weights = False
        if not all(llm.collective_rpc(_has_head)):  # a tied one, which vLLM's Gemma 2 refuses and its Qwen3 needs
            named_tensors = ((name, tensor) for name, tensor in named_tensors if name != "lm_head.weight")
        remaining = in_hub_names(self._model, named_tensors)
        with process_state_kept(), torch.inference_mode(False):  # what validation makes would take no later update
            if self._asleep:
                llm.wake_up(tags=["weights"])
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": remaining})
            if not torch.accelerator.is_available():
                llm.collective_rpc(_pack_experts)
            for _ in remaining:  # every rank takes part in gathering what the loader had no use for
                pass
            if self._asleep:
                llm.wake_up(tags=["kv_cache"])
        self._asleep = False
        if not llm.reset_prefix_cache():
            raise RuntimeError(f"update_weights: vLLM kept its prefix cache of the weights before version {version}.")
        self.weights_version = version
        self._has_weights = True

    def release_memory(self) -> None:
        """Give the memory of weights and cache to the trainer until `update_weights`, where the engine may sleep."""
        if self._llm is None or self._asleep or not self._arguments["enable_sleep_mode"]:
            return
        self._has_weights = False
        self._llm.sleep(level=self._sleep_level)
        self._asleep = True

    def close(self) -> None:
        """Give back the engine's memory."""
        if self._llm is None:
            return
        client = self._llm.llm_engine.engine_core
        self._llm, self._has_weights = None, False
        if self._owns_group:
            client.shutdown()
        else:
            _shut_down_within_group(client)
        del client
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _engine(self) -> Any:
        """The `vllm.LLM`, made at the first call, by all ranks together."""
        if self._llm is None:
            # An engine process of its own could not read the tensors that update_weights passes on.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
            from vllm import LLM

            arguments = dict(self._arguments)
            self._owns_group = not dist.is_initialized()
            place = nullcontext() if self._owns_group else launcher_variables()
            if not self._owns_group:
                # the trainer's processes and devices; vLLM's default would put every rank's engine on device 0
                arguments["distributed_executor_backend"] = "external_launcher"
            self._join_peers()
            with process_state_kept(), place, torch.inference_mode(False):
                self._llm = LLM(**arguments)
        return self._llm

    def _join_peers(self) -> None:
        """A group of the ranks that are one engine; all ranks of the run call together."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        size = self.ranks_per_engine
        if ranks % size:
            raise ConfigError(
                f"rollout.tensor_parallel_size: expected a divisor of the {ranks} ranks of this run, found {size}."
            )
        if size > 1:
            self._peers, _ = dist.new_subgroups(size, backend="gloo")

    def _all_requests(
        self, own: list[tuple[tuple[int, ...], int]], params: SamplingParams
    ) -> list[tuple[tuple[int, ...], int]]:
        """The prompts and seeds of all ranks of this engine, without repetitions, in the same order on all of them."""
        if self._peers is None:
            return list(dict.fromkeys(own))
        gathered: list[Any] = [None] * self.ranks_per_engine
        dist.all_gather_object(gathered, (own, params), group=self._peers)
        if any(other != params for _, other in gathered):
            raise ValueError(
                f"generate: expected equal sampling parameters on the {self.ranks_per_engine} ranks of an engine, "
                f"found {[other for _, other in gathered]}."
            )
        return list(dict.fromkeys(request for requests, _ in gathered for request in requests))

    def _completions(self, output: Any) -> list[Completion]:
        """The completions of one `RequestOutput`, in the order of their seeds."""
        return [
            completion(
                sampled.token_ids,
                [position[token].logprob for position, token in zip(sampled.logprobs, sampled.token_ids, strict=True)],
                sampled.finish_reason,
                self.weights_version,
                sampled.routed_experts,
            )
            for sampled in sorted(output.outputs, key=lambda sampled: sampled.index)
        ]


def _shut_down_within_group(client: Any) -> None:
    """`client.shutdown()` without its last act, which would destroy the trainer's process group along with vLLM's.

    vLLM does the same once more when the client is collected; that call is taken back.
    """
    from vllm.distributed.parallel_state import destroy_model_parallel

    client._finalizer.detach()
    client.engine_core.model_executor.shutdown()
    client.engine_core.scheduler.shutdown()
    gc.unfreeze()
    destroy_model_parallel()


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Keep trainer and vLLM apart: autocast is off inside, and random states and threads are put back behind it.

    vLLM seeds all generators when it starts, draws from them at every step, and leaves torch with one thread (on a CPU
    also without `torch.set_num_threads`): the trainer would draw other numbers than with another engine, and compute
    slowly. Lightning's autocast would round what vLLM computes in float32, a mixture's router for one.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    python, numpy = random.getstate(), np.random.get_state()
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with (
            torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []),
            torch.autocast("cpu" if here is None else here.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def launcher_variables() -> Iterator[None]:
    """`RANK` and `LOCAL_RANK` in the environment as torchrun sets them, the latter the trainer's device.

    vLLM reads its place from them. Lightning's own launcher sets one, SLURM neither, and a task that sees one device
    only has another local rank than device.
    """
    on_device = torch.accelerator.is_available()
    local = torch.accelerator.current_device_index() if on_device else os.environ.get("LOCAL_RANK", "0")
    names = {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(local)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _has_head(worker: Any) -> bool:
    """Whether vLLM's model has an output head of its own, or of the same weights as its embeddings."""
    return hasattr(worker.model_runner.model, "lm_head")


def _pack_experts(worker: Any) -> None:
    """Lay out a mixture's experts as their CPU kernel reads them, which vLLM 0.32 does at the first load only."""
    for layer in worker.model_runner.model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)
