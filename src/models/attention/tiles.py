"""Attention computed tile by tile with PyTorch's CPU flash kernel, forward and backward, exactly.

A query's keys may lie in several tiles. Their outputs are merged by log-sum-exp: with o_t and s_t of tile t,
s = log(sum exp s_t) and o = sum exp(s_t - s) o_t. In the backward pass the kernel rebuilds the probabilities
exp(score - s) from the log-sum-exp that it is given and needs no others, so with the merged s and o each tile gives its
own share of the gradients, and the tiles need not be those of the forward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.models.attention.plan import Tile, backward_tiles

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tiled_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: tuple[Tile, ...],
    scale: float | None,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention [L, H, D] of query [L, H, D] over key and value [L, H_kv, D], all on the CPU.

    Computed in float32 where inputs are shorter: in bfloat16 the kernel's forward is no faster, its backward takes
    three times as long on CPUs without instructions for it, and it sums gradients in bfloat16. The result has the
    precision of `value`, since autocast leaves rotated queries and keys in float32.

    Args:
        query: any number of heads that is a multiple of the key heads.
        key: not repeated for the query heads that share it.
        value: likewise, with heads of the same size.
        tiles: causal ones first, which cover each position once.
        scale: factor on the scores; 1/sqrt(D) when None.
        sink: [H], the score of a key without a value that every query sees: one more tile, of output 0.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    sink = None if sink is None else sink.to(wide)
    out = _TiledAttention.apply(query.to(wide), key.to(wide), value.to(wide), sink, tiles, scale)
    return cast(Tensor, out).to(value.dtype)


class _TiledAttention(torch.autograd.Function):
    """Keeps the inputs, the output and a log-sum-exp [L, H] for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sink: Tensor | None,
        tiles: tuple[Tile, ...],
        scale: float | None,
    ) -> Tensor:
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        total = query.new_empty(query.shape[:2])
        for tile in tiles:
            part, part_lse = _flash(
                _queries(query, tile), _keys(key, tile), _keys(value, tile), 0.0, tile.causal, scale=scale
            )
            into, lse = _queries(out, tile), _queries(total.unsqueeze(-1), tile).squeeze(-1)
            if tile.causal:
                into.copy_(part)
                lse.copy_(part_lse)
            else:
                into.lerp_(part, (part_lse - lse).sigmoid_().unsqueeze(-1))
                torch.logaddexp(lse, part_lse, out=lse)
        if sink is not None:
            out.mul_((total - sink).sigmoid_().unsqueeze(-1))
            torch.logaddexp(total, sink.expand_as(total), out=total)
        ctx.save_for_backward(query, key, value, sink, out, total)
        ctx.tiles, ctx.scale = tiles, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        query, key, value, sink, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        by_sink = None
        if sink is not None and ctx.needs_input_grad[3]:  # its probability times (0 - grad . out)
            by_sink = -((sink - lse).exp_() * (grad * out).sum(-1)).sum(0)
        lse = lse.unsqueeze(-1)
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        for tile in backward_tiles(ctx.tiles, key.shape[1], torch.get_num_threads()):
            parts = _flash_backward(
                _queries(grad, tile),
                _queries(query, tile),
                _keys(key, tile),
                _keys(value, tile),
                _queries(out, tile),
                _queries(lse, tile).squeeze(-1),
                0.0,
                tile.causal,
                scale=ctx.scale,
            )
            intos = (_queries(grads[0], tile), _keys(grads[1], tile), _keys(grads[2], tile))
            for into, part in zip(intos, parts, strict=True):
                if tile.causal:
                    into.copy_(part)
                elif into.stride(0) == 0:  # runs share these positions
                    into[0].add_(part.sum(0))
                else:
                    into.add_(part)
        return grads[0], grads[1], grads[2], by_sink, None, None


def _queries(x: Tensor, tile: Tile) -> Tensor:
    """The tile's queries of x [L, H, D] as [runs, H, queries, D], a view."""
    return _runs(x, tile.query, tile.queries, tile.runs, tile.query_step)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    """The tile's keys of x [L, H_kv, D] as [runs, H_kv, keys, D], a view."""
    return _runs(x, tile.key, tile.keys, tile.runs, tile.key_step)


def _runs(x: Tensor, start: int, length: int, runs: int, step: int) -> Tensor:
    by_position, by_head, by_entry = x.stride()
    return x.as_strided(
        (runs, x.shape[1], length, x.shape[2]),
        (step * by_position, by_head, by_position, by_entry),
        x.storage_offset() + start * by_position,
    )
