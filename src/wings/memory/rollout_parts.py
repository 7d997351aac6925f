"""Predicted memory of a rollout engine: numbers in, parts out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from src.rollout.engine import SamplingParams
from src.rollout.native.prefix_cache import room_for
from src.runs.folder import GIB
from src.wings.memory.plan import MemoryPart, Phase

_SCORE_BYTES = 16  # of a query-key pair in decoding: scores, exponentials, shares and their conversion
_AT_REST = GIB


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


def native_parts(
    architecture: PretrainedConfig,
    batches: Sequence[GenerationBatch],
    *,
    key_bytes: int,
    value_bytes: int,
    logits: torch.dtype,
    copied_weights: int,
    prefill_token: float,
    max_sequences: int,
    max_batch_tokens: int,
    sampling: SamplingBytes = sampling_bytes,
) -> list[MemoryPart]:
    """Parts of the native engine, for the largest of the batches.

    Args:
        architecture: of the policy.
        batches: that it may be given.
        key_bytes: of a cached key's number.
        value_bytes: of a cached value's number.
        logits: their dtype.
        copied_weights: bytes of a copy of the model; 0: it samples with the training module.
        prefill_token: bytes that a forward takes for each prompt token.
        max_sequences: see `NativeEngine`.
        max_batch_tokens: see `NativeEngine`.
        sampling: `sampling_bytes`, or what remembers it.
    """
    text = architecture.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    budgets = {"max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}

    def cache_and_work(batch: GenerationBatch) -> tuple[int, int]:
        n, longest = 1 if batch.sampling.temperature == 0 else batch.sampling.n, batch.sampling.max_new_tokens
        room = room_for(batch.prompts, batch.prompt_tokens, n, longest, **budgets)
        tokens = room.slots * batch.prompt_tokens + room.rows * max(longest - 1, 1)
        layer = tokens * kv_heads * size * (key_bytes + value_bytes)
        prefill = int(room.rows // n * batch.prompt_tokens * prefill_token)
        scores = room.rows * heads * max(batch.prompt_tokens, longest) * _SCORE_BYTES
        decode = scores + sampling(room.rows, text.vocab_size, logits, batch.sampling)
        return text.num_hidden_layers * layer, max(prefill, decode)

    parts = []
    if copied_weights:
        what = "a whole model of its own, in the type of the forwards"
        parts.append(MemoryPart.always("engine weights", what, copied_weights, ("rollout=vllm_server",)))
    cache, work = max(map(cache_and_work, batches), key=sum)
    keys = ("rollout.max_batch_tokens", "rollout.max_sequences")
    return [
        *parts,
        MemoryPart("key/value cache", "prompts once, completions at their longest", {"rollout": cache}, keys),
        MemoryPart("sampling", "prefill of a batch of prompts, or logits of its completions", {"rollout": work}, keys),
    ]


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
    rest = [MemoryPart.always("engine at rest", "vLLM's graphs and buffers: a usual figure, not measured", _AT_REST)]
    if sleeps:
        awake: dict[Phase, int] = {"rollout": size, "handover": size}
        return [*rest, MemoryPart("engine", f"{what}, asleep during the update", awake, keys)]
    return [*(rest if cuda else []), MemoryPart.always("engine", what, size, keys)]
