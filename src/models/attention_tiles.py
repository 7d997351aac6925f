"""Attention computed tile by tile with PyTorch's CPU flash kernel, forward and backward, exactly.

A query's keys may lie in several tiles. Their outputs are merged by log-sum-exp: with o_t and s_t of tile t,
s = log(sum exp s_t) and o = sum exp(s_t - s) o_t. In the backward pass the kernel rebuilds the probabilities
exp(score - s) from the log-sum-exp that it is given and needs no others, so with the merged s and o each tile gives its
own share of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.models.attention_plan import Tile

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tiled_attend(query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile], scale: float | None) -> Tensor:
    """Attention [L, H, D] of query [L, H, D] over key and value [L, H_kv, D], all on the CPU.

    Args:
        query: any number of heads that is a multiple of the key heads.
        key: not repeated for the query heads that share it.
        value: likewise, with heads of the same size.
        tiles: causal ones first, which cover each position once.
        scale: factor on the scores; 1/sqrt(D) when None.
    """
    return cast(Tensor, _TiledAttention.apply(query, key, value, tiles, scale))


class _TiledAttention(torch.autograd.Function):
    """Keeps the inputs, the output and a log-sum-exp [L, H] for the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile], scale: float | None
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        total: Tensor | None = None
        for tile in tiles:
            part, part_lse = _flash(
                _queries(query, tile), _keys(key, tile), _keys(value, tile), 0.0, tile.causal, scale=scale
            )
            if total is None:
                total = part_lse.new_empty(query.shape[:2])
            into, lse = _queries(out, tile), _queries(total, tile)
            if tile.causal:
                into.copy_(part)
                lse.copy_(part_lse)
            else:
                into.lerp_(part, (part_lse - lse).sigmoid_().to(part.dtype).unsqueeze(-1))
                torch.logaddexp(lse, part_lse, out=lse)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.tiles, ctx.scale = tiles, scale
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        for tile in ctx.tiles:
            parts = _flash_backward(
                _queries(grad, tile),
                _queries(query, tile),
                _keys(key, tile),
                _keys(value, tile),
                _queries(out, tile),
                _queries(lse, tile),
                0.0,
                tile.causal,
                scale=ctx.scale,
            )
            intos = (_queries(grads[0], tile), _keys(grads[1], tile), _keys(grads[2], tile))
            for into, part in zip(intos, parts, strict=True):
                if tile.causal:
                    into.copy_(part)
                else:
                    into.add_(part)
        return grads[0], grads[1], grads[2], None, None


def _queries(x: Tensor, tile: Tile) -> Tensor:
    """The tile's queries of x [L, H, …] as [runs, H, queries, …], a view."""
    return x.narrow(0, tile.query, tile.runs * tile.queries).unflatten(0, (tile.runs, tile.queries)).transpose(1, 2)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    """The tile's keys of x [L, H_kv, …] as [runs, H_kv, keys, …], a view."""
    return x.narrow(0, tile.key, tile.runs * tile.keys).unflatten(0, (tile.runs, tile.keys)).transpose(1, 2)
