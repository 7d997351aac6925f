"""Attention for packed rows, registered with transformers under the name `packed_rows`.

No attention layer is patched by this. `models.fused_norm` does replace the forward of RMSNorm layers.

`AttentionPlan` says how a row is cut up. It is made once a forward and reaches the attention function as the forward
keyword `packed_plan`, which gradient checkpointing replays. Without that keyword (generation, ordinary batches) the
function is transformers' own SDPA. On the CPU the row is computed tile by tile (`models.attention.tiles`), on CUDA by
FlexAttention, which never loads a block that no query sees (not measured yet). Nothing of size [L, L] is built and no
key is copied. What neither can do (dropout, head sizes and precisions that the kernels lack, other devices) goes group
by group through SDPA with a mask.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from src.errors import ConfigError
from src.models.attention.plan import AttentionPlan
from src.models.attention.tiles import tiled_attend

PACKED_ATTENTION = "packed_rows"
"""Name under which transformers finds the attention function of packed rows."""

MARK = (1, 1, 1, 1)
"""Shape of the mask that a packed row goes with: of four dimensions, so that transformers passes it on untouched."""
_SCORE_TERMS = ("s_aux", "sinks", "softcap", "position_bias", "alibi")
"""What layers pass on that changes scores in a way that is not computed here."""

_MAX_HEAD_DIM = 128  # larger heads run out of shared memory on some cards (head_dim 192 on an A10G)


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row; transformers' SDPA where no plan is given.

    Args:
        module: the attention layer.
        query: [1, H, L, D].
        key: [1, H_kv, L, D].
        value: [1, H_kv, L, D].
        attention_mask: with a plan, the mark that stands for one.
        dropout: probability that an attention weight is dropped.
        scaling: factor on the scores; 1/sqrt(D) when None.
        packed_plan: of the row.
        **kwargs: what the layer passes on; read by transformers' SDPA only.

    Returns:
        [1, L, H, D] and None.

    Raises:
        ConfigError: the layers of this model do something that packed rows do not: they drop the plan, mask by
            themselves, or add to the scores.
    """
    marked = attention_mask is not None and attention_mask.shape == MARK
    if packed_plan is None and marked and query.shape[2] > 1:
        raise _unfit(module, "its layers do not pass on the plan of a row, so that completions would see each other")
    if packed_plan is not None and attention_mask is not None and not marked:
        raise _unfit(module, f"its layers have a mask of their own, of shape {list(attention_mask.shape)}")
    if packed_plan is not None and (terms := [name for name in _SCORE_TERMS if kwargs.get(name) is not None]):
        raise _unfit(module, f"its layers change the scores by {', '.join(terms)}")
    if packed_plan is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and dropout == 0:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [L, heads, D]
        return tiled_attend(q, k, v, packed_plan.tiles, scaling)[None], None
    query, key, value = _autocast(query, key, value)
    if flex_supports(query, value) and dropout == 0:
        return flex_attend(query, key, value, packed_plan.block_mask, scaling).transpose(1, 2), None
    return _attend_by_group(module, query, key, value, packed_plan, dropout, scaling), None


def _unfit(module: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"policy: {type(module).__name__} cannot run on packed rows: {reason}. Choose a model such as Qwen3 or Llama."
    )


def check_attention_support(config: PretrainedConfig, attention: str) -> None:
    """Refuse models whose attention is more than scaled softmax over a prefix.

    Sliding windows pass: they change nothing in rows shorter than the window, which `Policy` checks for each row.

    Raises:
        ValueError: an unknown `attention`, linear or chunked layers, capped scores, attention sinks.
    """
    if attention not in ("packed", "dense"):
        raise ValueError(f"policy.attention: expected 'packed' or 'dense', found '{attention}'.")
    text = config.get_text_config()
    kind = f"model type '{config.model_type}'"
    odd_layers = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if odd_layers:
        raise ValueError(
            f"{kind}: layers of type {sorted(odd_layers)} cannot run on packed rows. Expected full_attention or "
            "sliding_attention layers only; choose a model such as Qwen3 or Llama."
        )
    if getattr(text, "attn_logit_softcapping", None):
        raise ValueError(
            f"{kind}: attn_logit_softcapping={text.attn_logit_softcapping} is not computed by SDPA, so neither "
            "attention: packed nor attention: dense would be exact. Choose a model without it."
        )
    if config.model_type == "gpt_oss":
        raise ValueError(f"{kind}: attention sinks are not supported on packed rows.")


def sliding_window(config: PretrainedConfig) -> int | None:
    """Tokens that the model's sliding-window layers see, None without such layers."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    switched_off = getattr(text, "use_sliding_window", True) is False
    if window is None or switched_off or (types is not None and "sliding_attention" not in types):
        return None
    return int(window)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the precision that autocast gives SDPA: rotary embeddings leave queries and keys in float32."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _attend_by_group(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Outputs [1, L, H, D], each group by SDPA with its own mask."""
    outputs = []
    for start, length, mask in plan.group_masks:
        q, k, v = (x.narrow(2, start, length) for x in (query, key, value))
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, scaling=scale)[0])
    return torch.cat(outputs, dim=1)


def flex_supports(query: Tensor, value: Tensor) -> bool:
    """Whether FlexAttention's CUDA kernels take these heads, query [B, H, L, D] and value [B, H_kv, L, D].

    Left out are head sizes below 16 (the kernels' least), above 128 or no power of two, float32, whose tiles exceed
    shared memory on some cards, and float64.
    """
    sizes = (query.shape[-1], value.shape[-1])
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and all(16 <= size <= _MAX_HEAD_DIM and size & (size - 1) == 0 for size in sizes)
    )


def flex_attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, L, D].

    Args:
        query: any number of heads that is a multiple of the key heads.
        key: not repeated for the query heads that share it.
        value: likewise.
        mask: of the row, padded to its blocks.
        scale: factor on the scores; 1/sqrt(D) when None.
    """
    length = query.shape[2]
    padding = mask.seq_lengths[0] - length
    if padding:
        query, key, value = (F.pad(x, (0, 0, 0, padding)) for x in (query, key, value))
    attend = _compiled() if query.is_cuda else flex_attention
    out: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return out[:, :, :length]


@cache
def _compiled() -> Any:
    """Compiled once for rows of all lengths.

    `fullgraph` because a function that has been recompiled too often otherwise falls back, with a warning only, to an
    uncompiled form that holds all scores.
    """
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
