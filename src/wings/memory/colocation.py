"""vLLM beside the trainer on a device: what it needs to start, and the settings that a run leaves to the plan. Pure.

vLLM starts if weights, the peak of its profiling run and the cache of one request of its full length fit within its
share of the device (`vllm.v1.core.kv_cache_utils`, 0.32). The peak is estimated from shapes, the other two are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from src.runs.folder import GIB
from src.wings.memory.plan import PHASES, MemoryPart
from src.wings.memory.rollout_parts import AWAKE, attention_heads

_LARGEST_SHARE, _SPARE = 70, 5  # hundredths of the device
_MOST_SEQUENCES = 1024
_BLOCK = 16
_BATCHED_TOKENS = 16384
_GRAPHS = GIB
_SAMPLER_BYTES = 18
"""Of a logit: in two types, as log-probability, as probability, and the random number that chooses."""
_WITH_STATE = {"linear_attention", "conv", "mamba"}
_STATES = 3
"""A request's pages of a layer with a state: two where prefixes are kept, and vLLM's null block."""


def cache_bytes(architecture: PretrainedConfig, length: int, *, ranks: int, number: int, state: int) -> tuple[int, int]:
    """Bytes of vLLM's cache on each rank: (of one request, of one token).

    Windows are not taken off: vLLM keeps a window and all tokens of a step under way, which is longer than most.

    Args:
        architecture: of the model.
        length: tokens of the request.
        ranks: that are one engine, each with its share of the heads.
        number: bytes of a cached number.
        state: bytes of what a layer without attention keeps of a sequence.
    """
    text: Any = architecture.get_text_config(decoder=True)
    layers = list(text.per_layer_config)
    kinds = getattr(text, "layer_types", None) or [None] * len(layers)
    token = 0
    for layer, kind in zip(layers, kinds, strict=True):
        if kind in _WITH_STATE:
            continue
        if rank := getattr(layer, "kv_lora_rank", None):  # latent attention: one vector for all heads
            token += (rank + layer.qk_rope_head_dim) * number
            continue
        heads, key, value = attention_heads(layer)
        token += max(1, heads // ranks) * (key + value) * number
    blocks = -(-length // _BLOCK) + 1  # and the block that vLLM keeps empty
    return blocks * _BLOCK * token + _STATES * state * sum(kind in _WITH_STATE for kind in kinds), token


def keeps_states(architecture: PretrainedConfig) -> bool:
    """Whether layers keep a state of a sequence in place of its keys and values."""
    return bool(
        _WITH_STATE.intersection(getattr(architecture.get_text_config(decoder=True), "layer_types", None) or ())
    )


def profile_bytes(architecture: PretrainedConfig, sequences: int, *, ranks: int, tokens: int | None = None) -> int:
    """Peak of vLLM's profiling run in half precision, with its CUDA graphs; an estimate from shapes, not measured.

    Args:
        architecture: of the model.
        sequences: that are sampled for at once.
        ranks: that are one engine.
        tokens: of a step (`max_num_batched_tokens`); None: vLLM's default on large devices.
    """
    text: Any = architecture.get_text_config(decoder=True)
    hidden, inner = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    width = 3 * inner / ranks
    if experts := getattr(text, "num_experts_per_tok", None):
        inner = getattr(text, "moe_intermediate_size", None) or inner
        width = max(width, experts * (3 * inner / ranks + hidden))
    forward = (tokens or _BATCHED_TOKENS) * (4 * hidden + width) * 2
    return int(max(forward, sequences * text.vocab_size * _SAMPLER_BYTES)) + _GRAPHS


def free_share(others: Sequence[MemoryPart], device: int | None, *, sleeps: bool) -> float:
    """The share of a device that the trainer leaves to the engine, in hundredths.

    Args:
        others: all parts but the engine's.
        device: bytes; None: not known, and the trainer is taken to hold little.
        sleeps: whether the engine needs it in some phases only.
    """
    if device is None:
        return _LARGEST_SHARE / 100
    held = max(sum(part.bytes.get(phase, 0) for part in others) for phase in (AWAKE if sleeps else PHASES))
    left = ((100 - _SPARE) * device - 100 * held) // device
    return min(_LARGEST_SHARE, max(_SPARE, left)) / 100


def sequences_at_once(asked: int) -> int:
    """Completions that decode together, of an engine that is asked for so many at once."""
    return max(1, min(_MOST_SEQUENCES, asked))
