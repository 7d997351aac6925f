"""From hidden states to a log-probability and an entropy a token, without the [tokens, vocabulary] matrix.

On request also what the head's gradient is like token by token (the paper's section 3.1), without forming a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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
    _check(temperature, chunk)
    logprobs, entropies = _TokenScores.apply(hidden, weight, bias, targets, temperature, chunk)
    return logprobs, entropies


class LastLayerGradients(NamedTuple):
    """Size, and on request inner products, of d log p(y_t) / dW for N sampled tokens, W [V, d] the head's weight.

    With logits z = (W h + bias) / τ and the score s = e_y - p (Lemma 2), that gradient is s h^T / τ, and its squared
    Frobenius norm ||s||² ||h||² / τ². So with the spectral norm of the Jacobian J = dz/dW the second moment is exact:
    ||J^T s|| = ||J|| ||s||. Lemma 2's ||J||_F² = V ||h||² / τ² is V times that.

    Attributes:
        score_norms: float32 [N], ||e_y - p||² of the sampled token.
        expected_score_norms: float32 [N], its mean over tokens drawn from p, 1 - Σp² (Eq. 4).
        jacobian_norms: float32 [N], ||J||² = ||h||² / τ² (spectral).
        gram: float32 [N, N], inner products of the tokens' gradients; None unless asked for.
    """

    score_norms: Tensor
    expected_score_norms: Tensor
    jacobian_norms: Tensor
    gram: Tensor | None = None

    @property
    def second_moments(self) -> Tensor:
        """[N], squared Frobenius norm of each token's gradient; the diagonal of `gram`."""
        return self.score_norms * self.jacobian_norms

    @property
    def expected_second_moments(self) -> Tensor:
        """[N], its mean over tokens drawn from p."""
        return self.expected_score_norms * self.jacobian_norms


@torch.no_grad()
def last_layer_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int = 512,
    gram: bool = False,
) -> tuple[Tensor, Tensor, LastLayerGradients]:
    """`token_logprobs_and_entropies` without gradients, and in the same pass the size of the head's gradients.

    1 - p is computed from log p, so that tokens of almost no entropy keep a second moment that is small and not
    rounding noise. `gram` takes a second pass over the head in chunks of the vocabulary, N² V multiplications, and
    [N, N] floats; no more logits exist at once than in the first pass.

    Args:
        hidden: [N, d].
        weight: [V, d].
        targets: int64 [N].
        temperature: > 0, divides the logits.
        bias: [V]; its own gradient is not counted.
        chunk: tokens whose logits exist at once.
        gram: whether to compute the inner products.

    Returns:
        logprobs [N], entropies [N] in nats, and the gradients' moments, float32 (float64 for float64 inputs).

    Raises:
        ValueError: temperature or chunk not positive.
    """
    _check(temperature, chunk)
    logprobs = hidden.new_empty(len(hidden), dtype=_precise(hidden))
    entropies, normalisers, norms, expected = (torch.empty_like(logprobs) for _ in range(4))
    for part, logits in _logit_chunks(hidden, weight, bias, temperature, chunk):
        normalisers[part] = logits.logsumexp(-1)
        logp = logits.sub_(normalisers[part, None])
        p = logp.exp()
        logprobs[part] = logp.gather(1, targets[part, None]).squeeze(1)
        entropies[part] = -(p * logp).sum(-1)
        expected[part] = -logp.expm1_().mul_(p).sum(-1)
        norms[part] = p.scatter_(1, targets[part, None], logprobs[part, None].expm1()).square_().sum(-1)
    sizes = hidden.to(logprobs.dtype).square().sum(-1) / temperature**2
    products = None
    if gram:
        products = _score_products(hidden, weight, bias, targets, temperature, normalisers, chunk)
        products.mul_(_matmul(hidden, hidden.T)).div_(temperature**2)
    return logprobs, entropies, LastLayerGradients(norms, expected, sizes, products)


def _score_products(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    normalisers: Tensor,
    chunk: int,
) -> Tensor:
    """S S^T [N, N] of the scores e_y - p, summed over chunks of the vocabulary."""
    count, vocabulary = len(hidden), len(weight)
    products = normalisers.new_zeros(count, count)
    size = max(1, chunk * vocabulary // max(count, chunk))
    for start in range(0, vocabulary, size):
        part = slice(start, start + size)
        logits = _matmul(hidden, weight[part].T)
        if bias is not None:
            logits += bias[part]
        logp = logits.div_(temperature).sub_(normalisers[:, None])
        here = ((targets >= start) & (targets < start + size)).nonzero().squeeze(-1)
        columns = targets[here] - start
        at_target = logp[here, columns].expm1()
        negated = logp.exp_()
        negated[here, columns] = at_target
        products += _matmul(negated, negated.T)
    return products


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


def _check(temperature: float, chunk: int) -> None:
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"head: expected temperature > 0 and chunk >= 1, found {temperature} and {chunk}.")


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
