"""Predicted memory of a rollout engine: numbers in, parts out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from src.rollout.engine import SamplingParams
from src.rollout.native.prefix_cache import room_for
from src.runs.folder import GIB
from src.wings.memory.plan import MemoryPart, Phase

_SCORE_BYTES = 16  # of a query-key pair in decoding: scores, exponentials, shares and their conversion
_AT_REST = GIB
AWAKE: tuple[Phase, ...] = ("rollout", "scoring", "handover")
"""Phases in which an engine that sleeps has its memory: callbacks may sample until the update begins."""


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """Prompts that one call of `generate` may be given.

    Attributes:
        prompts: most of them.
        prompt_tokens: of the longest.
        sampling: completions a prompt and their length.
    """

    prompts: int
    prompt_tokens: int
    sampling: SamplingParams


def sampling_bytes(rows: int, vocabulary: int, dtype: torch.dtype, params: SamplingParams) -> int:
    """Logits [R, V] and all that choosing a token makes of them, traced on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from src.rollout.native.sampling import sample_tokens
    from src.wings.memory.activations import LiveBytes

    with FakeTensorMode(), LiveBytes() as memory:
        logits = torch.zeros(rows, vocabulary, dtype=dtype)
        sample_tokens(logits, torch.zeros(rows, dtype=torch.float64), params)
    return memory.peak


SamplingBytes = Callable[[int, int, torch.dtype, SamplingParams], int]


def attention_heads(layer: Any) -> tuple[int, int, int]:
    """Of a layer's config: (heads whose keys and values are stored, sizes of a key and of a value).

    Latent attention and JetMoe make the keys of all heads before attention functions see them.
    """
    heads = getattr(layer, "num_attention_heads", None) or 1
    if getattr(layer, "qk_nope_head_dim", None):
        return heads, layer.qk_nope_head_dim + layer.qk_rope_head_dim, layer.v_head_dim
    if size := getattr(layer, "kv_channels", None):
        return heads, size, size
    size = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return getattr(layer, "num_key_value_heads", None) or heads, size, size


def native_parts(
    architecture: PretrainedConfig,
    batches: Sequence[GenerationBatch],
    *,
    key_bytes: int,
    value_bytes: int,
    logits: torch.dtype,
    copied_weights: int,
    can_share: bool = False,
    prefill_token: float,
    max_sequences: int,
    max_batch_tokens: int,
    sampling: SamplingBytes = sampling_bytes,
    own_cache: Callable[[int], int] | None = None,
    recomputes: bool = False,
) -> list[MemoryPart]:
    """Parts of the native engine, for the largest of the batches.

    Args:
        architecture: of the policy.
        batches: that it may be given.
        key_bytes: of a cached key's number.
        value_bytes: of a cached value's number.
        logits: their dtype.
        copied_weights: bytes of a copy of the model; 0: it samples with the training module.
        can_share: whether it could sample with the training module.
        prefill_token: bytes that a forward takes for each prompt token (with `recomputes`, for each token).
        max_sequences: see `NativeEngine`.
        max_batch_tokens: see `NativeEngine`.
        sampling: `sampling_bytes`, or what remembers it.
        own_cache: bytes of the model's own cache for a sequence of so many tokens; None: prompts are shared.
        recomputes: there is no cache, and every step is a forward of all tokens.
    """
    text = architecture.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    budgets = {"max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}

    def cache_and_work(batch: GenerationBatch) -> tuple[int, int]:
        n, longest = 1 if batch.sampling.temperature == 0 else batch.sampling.n, batch.sampling.max_new_tokens
        if own_cache is not None:
            return own(batch, n, batch.prompt_tokens + longest)
        room = room_for(batch.prompts, batch.prompt_tokens, n, longest, **budgets)
        tokens = room.slots * batch.prompt_tokens + room.rows * max(longest - 1, 1)
        stored = [attention_heads(layer) for layer in text.per_layer_config]
        a_token = sum(count * (key * key_bytes + value * value_bytes) for count, key, value in stored)
        prefill = int(room.rows // n * batch.prompt_tokens * prefill_token)
        scores = room.rows * heads * max(batch.prompt_tokens, longest) * _SCORE_BYTES
        decode = scores + sampling(room.rows, text.vocab_size, logits, batch.sampling)
        return tokens * a_token, max(prefill, decode)

    def own(batch: GenerationBatch, n: int, tokens: int) -> tuple[int, int]:
        assert own_cache is not None
        together = min(batch.prompts, max_sequences // n, max_batch_tokens // (n * tokens))
        rows, width = max(1, together) * n, tokens if recomputes else batch.prompt_tokens
        prefill = rows * (int(width * prefill_token) + width**2 * (1 + logits.itemsize))  # and the mask of the padding
        given_back = 2 * rows * text.vocab_size * torch.float32.itemsize  # logits as `generate` copies and returns them
        decode = rows * heads * tokens * _SCORE_BYTES + sampling(rows, text.vocab_size, logits, batch.sampling)
        return rows * own_cache(tokens), max(prefill, decode) + given_back

    parts = []
    if copied_weights:
        what = "a whole model of its own, in the type of the forwards"
        shared = ("rollout.owns_model=false",) if can_share else ()
        parts.append(MemoryPart.always("engine weights", what, copied_weights, (*shared, "rollout=vllm_server")))
    cache, work = max(map(cache_and_work, batches), key=sum)
    keys = ("rollout.max_batch_tokens", "rollout.max_sequences")
    kept = "prompts once, completions at their longest" if own_cache is None else "the model's own, of whole sequences"
    return [
        *parts,
        MemoryPart("key/value cache", kept, {"rollout": cache}, keys),
        MemoryPart("sampling", "prefill of a batch of prompts, or logits of its completions", {"rollout": work}, keys),
    ]


def at_rest() -> MemoryPart:
    """What vLLM on a GPU holds while it sleeps."""
    return MemoryPart.always("engine at rest", "vLLM's graphs and buffers: a usual figure, not measured", _AT_REST)


def vllm_parts(
    *, cuda: bool, sleeps: bool, fraction: float, device_bytes: int | None, weights: int, cache: int | None
) -> list[MemoryPart]:
    """Parts of vLLM in the trainer's process.

    Args:
        cuda: whether it runs on a GPU.
        sleeps: whether it gives weights and cache back between rollouts.
        fraction: `rollout.gpu_memory_utilization`, of weights, cache and activations together.
        device_bytes: of the whole device; without it a fraction of it is not known either.
        weights: bytes of its weights.
        cache: bytes of its key/value cache where these are given in place of the fraction.
    """
    what, keys = "vLLM's weights and cache", ("rollout.kv_cache_gib",)
    size = weights + (cache or 0)
    if cache is None:
        what, keys = f"vLLM: {fraction:.0%} of the device", ("rollout.gpu_memory_utilization",)
        size = int(fraction * (device_bytes or 0))
    rest = [at_rest()]
    if sleeps:
        return [*rest, MemoryPart("engine", f"{what}, asleep during the update", dict.fromkeys(AWAKE, size), keys)]
    return [*(rest if cuda else []), MemoryPart.always("engine", what, size, keys)]
