"""What both vLLM engines ask of a request before it leaves, and what its answer must be. No vLLM, no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from src.errors import ConfigError
from src.rollout.engine import Completion, SamplingParams, check_prompts

LogprobsMode = Literal["processed_logprobs", "raw_logprobs"]

_COLDEST = 0.01
"""vLLM raises positive temperatures to this."""


def check_mode(mode: str) -> None:
    """Refuse a `rollout.logprobs_mode` that no contract of ours fits.

    Raises:
        ValueError: it is not one of `LogprobsMode`.
    """
    if mode not in get_args(LogprobsMode):
        raise ConfigError(f"rollout.logprobs_mode: expected one of {get_args(LogprobsMode)}, found '{mode}'.")


def check_size(share: float | None, sequences: int | None) -> None:
    """Refuse a `rollout.gpu_memory_utilization` or `rollout.max_num_seqs` that no engine can have.

    Raises:
        ConfigError: names the key.
    """
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"rollout.gpu_memory_utilization: expected null or in (0, 1], found {share}.")
    if sequences is not None and sequences < 1:
        raise ConfigError(f"rollout.max_num_seqs: expected null or at least 1, found {sequences}.")


def check_request(
    prompts: Sequence[Tensor],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    logprobs_mode: LogprobsMode,
    max_model_len: int,
) -> None:
    """Refuse what the engine would cut short, or answer with log-probabilities that mean something else.

    vLLM gives log-probabilities before temperature, top-p and top-k (`raw_logprobs`) or after all of them
    (`processed_logprobs`); `Completion.logprobs` are after temperature and before the cuts.

    Args:
        prompts: int64 [P_i] each.
        params: how to sample.
        seeds: one a prompt.
        logprobs_mode: which of the two vLLM was started with.
        max_model_len: most tokens of prompt and completion.

    Raises:
        ValueError: an empty prompt, one too long, a wrong number of seeds, or sampling that the mode does not fit.
    """
    check_prompts(prompts, seeds)
    for index, prompt in enumerate(prompts):
        if len(prompt) + params.max_new_tokens > max_model_len:
            raise ValueError(
                f"generate: prompt {index} has {len(prompt)} tokens, and sampling.max_new_tokens is "
                f"{params.max_new_tokens}; the engine takes {max_model_len} in all. Raise rollout.max_model_len (of a "
                "server: its --max-model-len), lower sampling.max_new_tokens or drop long prompts."
            )
    if params.temperature == 0:
        return
    if params.temperature < _COLDEST:
        raise ConfigError(
            f"sampling.temperature: vLLM expects 0 (greedy) or at least {_COLDEST}, found {params.temperature}."
        )
    cuts = params.top_p < 1 or params.top_k > 0
    found = f"found temperature={params.temperature}, top_p={params.top_p}, top_k={params.top_k}"
    if cuts and params.temperature != 1:
        raise ConfigError(
            "sampling: vLLM gives no log-probabilities after temperature and before top-p and top-k, which training "
            f"needs; expected temperature=1, or top_p=1 and top_k=0, {found}. Change these, or set rollout=native."
        )
    needed = "raw_logprobs" if cuts else "processed_logprobs"
    if (cuts or params.temperature != 1) and logprobs_mode != needed:
        raise ConfigError(
            f"sampling: with rollout.logprobs_mode={logprobs_mode} vLLM's log-probabilities are not those that "
            f"training needs; {found}. Set rollout.logprobs_mode={needed} (of a server: --logprobs-mode {needed} too)."
        )


def completion(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str | None,
    weights_version: int,
    experts: np.ndarray | None = None,
) -> Completion:
    """One answer as a `Completion`, tensors on the CPU.

    Raises:
        RuntimeError: it ended neither at a stop token nor at its limit.
    """
    if finish_reason not in ("stop", "length"):
        raise RuntimeError(f"generate: vLLM ended a completion with '{finish_reason}', expected 'stop' or 'length'.")
    return Completion(
        token_ids=torch.tensor(token_ids, dtype=torch.long),
        logprobs=torch.tensor(logprobs, dtype=torch.float32),
        finish_reason="stop" if finish_reason == "stop" else "length",
        weights_version=weights_version,
        experts=None if experts is None else torch.from_numpy(experts.astype(np.int64)),
    )


def sampling_fields(params: SamplingParams, seed: int) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams for one prompt; greedy completions are equal, so one is asked for."""
    greedy = params.temperature == 0
    n = 1 if greedy else params.n
    return {
        "n": n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_tokens": params.max_new_tokens,
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": True,  # only the stop tokens given stop, whatever the folder's generation config says
        "seed": None if greedy else seed * n % 2**63,  # the i-th completion gets this plus i: no two prompts share one
        "logprobs": 0,  # of the sampled token and no others
        "detokenize": False,
    }


def require_vllm() -> None:
    """Raise early, before anything is loaded, where vLLM is not installed.

    Raises:
        ModuleNotFoundError: says how to install it.
    """
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(
            "rollout=vllm: the package 'vllm' is not installed here. Install it (pip install -e '.[gpu]'), or set "
            "rollout=native.",
            name="vllm",
        )
