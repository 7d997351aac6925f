"""Attention for packed rows, registered with transformers under the name `packed_rows`.

No attention layer is patched by this. `models.fused_norm` does replace the forward of RMSNorm layers.

`AttentionPlan` says how a row is cut up. It is made once a forward and stands in for the attention mask: transformers
asks `_row_mask` for a mask of each kind of layer, full or sliding, and hands it to the layers, which gradient
checkpointing replays. Without a plan (generation, ordinary batches) the function is transformers' own SDPA. On the CPU
the row is computed tile by tile (`models.attention.tiles`), on CUDA by FlexAttention, which never loads a block that no
query sees (not measured yet); rows are padded to its blocks (`models.rows`). Nothing of size [L, L] is built and no key
is copied. What neither can do (dropout, head sizes that the kernels lack, float64 on CUDA, other devices; on the CPU
also capped scores, and windows that a sequence outgrows) goes group by group through SDPA with a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from src.errors import ConfigError
from src.models.attention.plan import AttentionPlan, MaskMod, in_blocks
from src.models.attention.tiles import tiled_attend

PACKED_ATTENTION = "packed_rows"
"""Name under which transformers finds the attention function of packed rows."""

_UNKNOWN_TERMS = ("sinks", "position_bias", "alibi")
"""What layers pass on that changes scores in a way that is not computed here."""

_MAX_HEAD_DIM = 128  # larger heads run out of shared memory on some cards (head_dim 192 on an A10G)

_TILES: Any = {"fwd_BLOCK_M": 32, "fwd_BLOCK_N": 32, "fwd_num_stages": 2}
"""Of the float32 forward: queries of 16 KiB and two stages of 32 KiB of keys and values at head size 128, within the 99
KiB of shared memory of the smallest cards since Ampere; PyTorch's own choice for an A100 could take 160 KiB. The
backward has 16 x 16 tiles anyway."""

_CAUSAL: Any = causal_mask_function
_plan: ContextVar[AttentionPlan | None] = ContextVar("plan", default=None)


@contextmanager
def planned(plan: AttentionPlan) -> Iterator[None]:
    """Around the forward of a model on one packed row: its masks are this plan."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def _row_mask(
    *, mask_function: MaskMod, local_size: int | None = None, use_vmap: bool = False, **ordinary: Any
) -> AttentionPlan | Tensor | None:
    """A mask for the layers of one kind, in transformers' interface: the plan, or without one SDPA's mask.

    Raises:
        ConfigError: the model asks for a mask that is more than a causal one within a window.
    """
    plan = _plan.get()
    if plan is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, use_vmap=use_vmap, **ordinary)
    if use_vmap or (local_size is None and mask_function is not _CAUSAL):
        raise ConfigError(_unfit("the model", "it asks for a mask that is more than causal"))
    if local_size is not None and plan.longest > local_size:
        plan = replace(plan, within=mask_function)
    if in_blocks(plan.device):
        _ = plan.block_mask  # a compiled layer finds it made, or it would be compiled for this row's groups
    return plan


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionPlan | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row; transformers' SDPA where the mask is an ordinary one.

    Args:
        module: the attention layer.
        query: [1, H, L, D].
        key: [1, H_kv, L, D].
        value: [1, H_kv, L, D].
        attention_mask: the plan of the row.
        dropout: probability that an attention weight is dropped.
        scaling: factor on the scores; 1/sqrt(D) when None.
        softcap: scores become softcap tanh(score / softcap).
        s_aux: [H], the score of a key that every query of a head sees and that has no value (an attention sink).
        **kwargs: what the layer passes on; read by transformers' SDPA only.

    Returns:
        [1, L, H, D] and None.

    Raises:
        ConfigError: the layers of this model do something that packed rows do not: they drop the plan, mask by
            themselves, or add to the scores.
    """
    plan = attention_mask
    if not isinstance(plan, AttentionPlan):
        if _plan.get() is not None:
            found = "no mask" if plan is None else f"a mask of their own, of shape {list(plan.shape)}"
            raise ConfigError(_unfit(type(module).__name__, f"its layers have {found} in place of the row's plan"))
        if softcap is not None or s_aux is not None:
            raise ConfigError(
                _unfit(type(module).__name__, "SDPA, which computes rows without a plan, has no sinks and caps")
            )
        out, _ = sdpa_attention_forward(module, query, key, value, plan, dropout=dropout, scaling=scaling, **kwargs)
        return out, None
    if terms := [name for name in _UNKNOWN_TERMS if kwargs.get(name) is not None]:
        raise ConfigError(_unfit(type(module).__name__, f"its layers change the scores by {', '.join(terms)}"))
    compiling = torch.compiler.is_compiling()  # then for rows of any length, after `config.guard` has run the model
    if not compiling and (query.shape[2] != plan.tokens or key.shape[2] != plan.tokens):
        raise ConfigError(
            _unfit(
                type(module).__name__,
                f"its layers attend from {query.shape[2]} to {key.shape[2]} positions of a row of {plan.tokens}",
            )
        )
    if flex_supports(query, value) and dropout == 0:
        query, key, value = _autocast(query, key, value)
        return flex_attend(query, key, value, plan.block_mask, scaling, softcap, s_aux).transpose(1, 2), None
    return _attend(module, query, key, value, plan, dropout, scaling, softcap, s_aux), None


@torch.compiler.disable
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    dropout: float,
    scale: float | None,
    softcap: float | None,
    sink: Tensor | None,
) -> Tensor:
    """What FlexAttention does not take, [1, L, H, D]: calls that follow the row's groups, so no part of a graph."""
    plain = dropout == 0 and softcap is None
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and plain and plan.within is None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [L, heads, D]
        return tiled_attend(q, k, v, plan.tiles, scale, sink)[None]
    query, key, value = _autocast(query, key, value)
    if softcap is None and sink is None:
        return _attend_by_group(module, query, key, value, plan, dropout, scale)
    return _explicit(query, key, value, plan, dropout if module.training else 0.0, scale, softcap, sink)


def _unfit(what: str, reason: str) -> str:
    return f"policy: {what} cannot run on packed rows: {reason}. Set policy.rows=separate."


def check_packs(config: PretrainedConfig) -> None:
    """Refuse models with layers that are known to carry more than attention from token to token.

    What their configs do not tell is found by comparing numbers (`config.guard`).

    Raises:
        ConfigError: linear attention, convolutions or a state-space model among the layers.
    """
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    if odd := sorted(set(types) - {"full_attention", "sliding_attention", "chunked_attention"}):
        raise ConfigError(_unfit(f"model type '{config.model_type}'", f"it has layers of type {', '.join(odd)}"))


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


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    dropout: float,
    scale: float | None,
    softcap: float | None,
    sink: Tensor | None,
) -> Tensor:
    """The same with capped scores or sinks [H], which SDPA does not have; the scores of a group exist at once."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for start, length, mask in plan.group_masks:
        q, k, v = (x.narrow(2, start, length) for x in (query, key, value))
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        scores = ((q @ k.transpose(2, 3)) * scale).float()
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, -torch.inf)
        if sink is not None:
            column = sink.float().view(1, -1, 1, 1).expand(1, -1, length, 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = F.dropout(scores.softmax(-1)[..., :length], dropout).to(v.dtype)
        outputs.append((weights @ v).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def flex_supports(query: Tensor, value: Tensor) -> bool:
    """Whether FlexAttention's CUDA kernels take these heads, query [B, H, L, D] and value [B, H_kv, L, D].

    Left out are head sizes below 16 (the kernels' least), above 128 or no power of two, and float64. In float32 the
    forward's tiles are set here (`_TILES`).
    """
    sizes = (query.shape[-1], value.shape[-1])
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and all(16 <= size <= _MAX_HEAD_DIM and size & (size - 1) == 0 for size in sizes)
    )


def flex_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scale: float | None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, L, D].

    Args:
        query: any number of heads that is a multiple of the key heads.
        key: not repeated for the query heads that share it.
        value: likewise.
        mask: of the row, whose length is a `block_length`.
        scale: factor on the scores; 1/sqrt(D) when None.
        softcap: see `packed_attention_forward`.
        sink: [H], likewise.
    """
    attend: Any = flex_attention
    if not torch.compiler.is_compiling():
        for x in (query, key, value):  # else a row of as many blocks as there are heads has a graph of its own
            torch._dynamo.mark_static(x, [1, 3])
    if query.is_cuda and not torch.compiler.is_compiling():
        attend = _compiled(watched=is_in_torch_dispatch_mode())
    settings: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": True}
    if query.dtype == torch.float32:
        settings["kernel_options"] = _TILES
    if softcap is not None:
        settings["score_mod"] = _capped(softcap)
    if sink is None:
        out: Tensor = attend(query, key, value, **settings)
    else:  # one more term of the softmax's sum, without a value
        out, aux = attend(query, key, value, return_aux=AuxRequest(lse=True), **settings)
        out = out * torch.sigmoid(aux.lse - sink.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)
    return out


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """FlexAttention's `score_mod`; the same function for the same cap, so that it is compiled once."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _compiled(*, watched: bool) -> Any:
    """Compiled for rows of all lengths: once with gradients, once without, for each kind of mask and layer.

    `fullgraph` because a function that has been recompiled too often otherwise falls back, with a warning only, to an
    uncompiled form that holds all scores. `models.compiling` sets when that is.

    Args:
        watched: `models.recomputing` sees the kernel, and keeps what it gives.
    """
    options: Any = {"wrap_inductor_compiled_regions": True} if watched else None
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, options=options)


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, _row_mask)
