"""Attention for packed rows, registered with transformers under the name `packed_rows`; no model is patched.

`AttentionPlan` holds the gathers of a row, made once a forward, and reaches the attention function as the forward
keyword `packed_plan`, which gradient checkpointing replays. Without that keyword (generation, ordinary batches) the
function is transformers' own SDPA. Nothing of size [L, L] is built: prompts are causal among themselves, and a
completion's queries meet the keys of its prompt and of itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from src.models.attention_plan import AttentionPlan, CausalBlock, CompletionBlock

PACKED_ATTENTION = "packed_rows"
"""Name under which transformers finds the attention function of packed rows."""


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
        attention_mask: ignored with a plan.
        dropout: probability that an attention weight is dropped.
        scaling: factor on the scores; 1/sqrt(D) when None.
        packed_plan: of the row.
        **kwargs: what the layer passes on; read by transformers' SDPA only.

    Returns:
        [1, L, H, D] and None.
    """
    if packed_plan is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [L, heads, D]
    outputs = [_attend_causal(block, q, k, v, dropout, scaling) for block in packed_plan.causal]
    outputs += [_attend_completions(block, q, k, v, dropout, scaling) for block in packed_plan.completions]
    return torch.cat(outputs).index_select(0, packed_plan.order)[None], None


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


def _attend_causal(
    block: CausalBlock, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Outputs [S*W, H, D] of a causal block."""
    q, k, v = (_take(x, block.index).transpose(1, 2) for x in (q, k, v))  # [S, heads, W, D]
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)


def _attend_completions(
    block: CompletionBlock, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Outputs [B*G*T, H, D] of a completion block.

    Query heads that share a key head are folded into the query axis, so that grouped-query attention with a mask
    needs neither repeated keys nor a kernel that knows about groups.
    """
    heads, kv_heads, size = q.shape[1], k.shape[1], q.shape[2]
    rows, width = block.own_index.shape
    shared = heads // kv_heads
    q = _take(q, block.own_index).view(rows, width, kv_heads, shared, size)
    q = q.permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, shared * width, size)
    k, v = (_join(x, block) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=block.mask.repeat(1, 1, shared, 1), dropout_p=dropout, scale=scaling
    )
    out = out.view(rows, kv_heads, shared, width, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(rows * width, heads, -1)


def _join(x: Tensor, block: CompletionBlock) -> Tensor:
    """Keys or values [B*G, H_kv, P+T, D] of each completion: its prompt's, then its own."""
    groups, rows = len(block.prompt_index), len(block.own_index)
    prompt = _take(x, block.prompt_index)[:, None].expand(-1, rows // groups, -1, -1, -1).flatten(0, 1)
    return torch.cat([prompt, _take(x, block.own_index)], dim=1).transpose(1, 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [L, heads, D] at index [S, W]: [S, W, heads, D]."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
