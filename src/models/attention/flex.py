"""FlexAttention over a packed row: block-sparse on CUDA, where blocks that no query sees are never loaded.

Not measured on CUDA yet; on CPU, PyTorch runs the same call without compilation and without a backward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_MAX_HEAD_DIM = 128  # larger heads run out of shared memory on some cards (head_dim 192 on an A10G)


def flex_supports(query: Tensor, value: Tensor) -> bool:
    """Whether FlexAttention's CUDA kernels take these heads.

    Left out are head sizes below 16 (the kernels' least), above 128 or no power of two, float32, whose tiles exceed
    shared memory on some cards, and float64.

    Args:
        query: [B, H, L, D].
        value: [B, H_kv, L, D].
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
