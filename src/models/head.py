"""From hidden states to a log-probability and an entropy a token, without the [tokens, vocabulary] matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs_and_entropies(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int = 512,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, under softmax((hidden @ weight.T + bias) / temperature).

    Logits exist for `chunk` tokens at a time, in forward and again in backward; between them only [N] vectors are kept.
    Products of bf16 inputs are accumulated and returned in float32, so that logits are not rounded to 8 bits. Gradients
    flow through both outputs to hidden, weight and bias; a weight that needs none (LoRA) costs none.

    Args:
        hidden: [N, d].
        weight: [V, d].
        targets: int64 [N].
        temperature: > 0, divides the logits.
        bias: [V].
        chunk: tokens whose logits exist at once.

    Returns:
        logprobs [N] and entropies [N] in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError: temperature or chunk not positive.
    """
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"head: expected temperature > 0 and chunk >= 1, found {temperature} and {chunk}.")
    logprobs, entropies = _TokenScores.apply(hidden, weight, bias, targets, temperature, chunk)
    return logprobs, entropies


class _TokenScores(torch.autograd.Function):
    """With z the scaled logits, p = softmax(z) and H the entropy: d logp_y / dz = 1_y - p, dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=_precise(hidden))
        entropies, normalisers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part, logits in _logit_chunks(hidden, weight, bias, temperature, chunk):
            normaliser = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None]).squeeze(1) - normaliser
            logp = logits.sub_(normaliser[:, None])
            entropies[part] = -(logp.exp() * logp).sum(-1)
            normalisers[part] = normaliser
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        precise = normalisers.dtype
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        for part, logits in _logit_chunks(hidden, weight, bias, ctx.temperature, ctx.chunk):
            logp = logits.sub_(normalisers[part, None])
            p = logp.exp()
            by_logprob, by_entropy = grad_logprobs[part, None], grad_entropies[part, None]
            grad = logp.add_(entropies[part, None]).mul_(by_entropy).add_(by_logprob).mul_(p).neg_()
            grad.scatter_add_(1, targets[part, None], by_logprob)
            grad.div_(ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = _matmul(grad, weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += _matmul(grad.T, hidden[part])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the tokens and their scaled logits [chunk, V], float32 or float64, for the caller to overwrite."""
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        logits = _matmul(hidden[part], weight.T)
        if bias is not None:
            logits += bias
        yield part, logits.div_(temperature) if temperature != 1.0 else logits


def _precise(tensor: Tensor) -> torch.dtype:
    """Type of results: float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product in float32 (float64 for float64 inputs), whatever autocast says.

    CUDA multiplies half-precision inputs and hands out the float32 accumulator. Elsewhere both are converted first.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.to(_precise(a)) @ b.to(_precise(a))
