"""Softmax attention over a part of the keys, and the merge of two parts by their mass."""

from __future__ import annotations

import torch
from torch import Tensor


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, with the log of its mass, by which parts are merged.

    Args:
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D_v].
        bias: float32, broadcast to [B, H, Q, K], or None.
        scale: factor of the scores.

    Returns:
        Output [B, H, Q, D_v] and float32 log-sum-exp of the scores [B, H, Q].
    """
    if _one_kernel(query, key, value):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
    scores = ((query * scale) @ key.transpose(-1, -2)).float()
    if bias is not None:
        scores = scores + bias
    peak = scores.amax(dim=-1, keepdim=True)
    weights = (scores - peak).exp()
    mass = weights.sum(dim=-1, keepdim=True)
    return (weights / mass).to(value.dtype) @ value, (peak + mass.log()).squeeze(-1)


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over both parts' keys: each part's output weighted by its share of the mass.

    Example:
        >>> one, two = (torch.tensor([[1.0]]), torch.tensor([0.0])), (torch.tensor([[4.0]]), torch.tensor([2.0]).log())
        >>> merge(one, two)  # masses 1 and 2: 1/3 of 1 and 2/3 of 4
        tensor([[3.]])

    Args:
        first: output [..., D] and log-sum-exp [...], as of `partial_attention`.
        second: likewise, over other keys.

    Returns:
        [..., D], in the outputs' type.
    """
    share = torch.sigmoid(second[1] - first[1]).unsqueeze(-1)
    if first[0].dtype == torch.float32:
        return torch.lerp(first[0], second[0], share)
    return torch.lerp(first[0].float(), second[0].float(), share).to(first[0].dtype)


def _one_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's fused CPU kernel, which also returns the log-sum-exp, takes these."""
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    return same and query.device.type == "cpu"
