"""What the gradient of a head is like token by token (the paper's section 3.1), without forming a gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.models.head.head import (
    LogitMap,
    apply_map_,
    checked_chunk,
    logit_chunks,
    matmul,
    operand,
    precise,
    product_type,
    softmax_,
)


class LastLayerGradients(NamedTuple):
    """Size, and on request inner products, of d log p(y_t) / dW for N sampled tokens, W [V, d] the head's weight.

    With logits z = (W h + bias) / τ and the score s = e_y - p (Lemma 2), that gradient is s h^T / τ, and its squared
    Frobenius norm ||s||² ||h||² / τ². So with the spectral norm of the Jacobian J = dz/dW the second moment is exact:
    ||J^T s|| = ||J|| ||s||. Lemma 2's ||J||_F² = V ||h||² / τ² is V times that.

    Where the model scales its logits by c or caps them, c h stands for h, and the score's entries are those of e_y - p
    times the slope of the cap.

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
    logit_map: LogitMap = LogitMap(),  # noqa: B008 (immutable)
    chunk: int | None = None,
    gram: bool = False,
) -> tuple[Tensor, Tensor, LastLayerGradients]:
    """`token_logprobs_and_entropies` without gradients, and in the same pass the size of the head's gradients.

    1 - p is computed from log p, so that tokens of almost no entropy keep a second moment that is small and not
    rounding noise. `gram` takes a second pass over the head in chunks of the vocabulary, N² V multiplications, and
    [N, N] floats; no more logits exist at once than in the first pass. A bias' own gradient is not counted.

    Returns:
        logprobs [N], entropies [N] in nats, and the gradients' moments, float32 (float64 for float64 inputs).

    Raises:
        ValueError: temperature or chunk not positive.
    """
    chunk, half = checked_chunk(weight, temperature, chunk), product_type(hidden)
    hidden, weight = operand(hidden, half), operand(weight, half)
    logprobs = hidden.new_empty(len(hidden), dtype=precise(hidden))
    entropies, normalisers, norms, expected = (torch.empty_like(logprobs) for _ in range(4))
    for part, logits, slope in logit_chunks(hidden, weight, bias, temperature, logit_map, chunk):
        p = logits.clone()
        logprobs[part], entropies[part], normalisers[part] = softmax_(p, targets[part])
        logp = logits.sub_(normalisers[part, None])
        spread = logp.expm1_().mul_(p)
        expected[part] = -(spread if slope is None else spread.mul_(slope.square())).sum(-1)
        score = p.scatter_(1, targets[part, None], logprobs[part, None].expm1())
        norms[part] = (score if slope is None else score.mul_(slope)).square_().sum(-1)
    sizes = hidden.to(logprobs.dtype).square().sum(-1) * (logit_map.scale / temperature) ** 2
    products = None
    if gram:
        products = _score_products(hidden, weight, bias, targets, temperature, logit_map, normalisers, chunk)
        products.mul_(matmul(hidden, hidden.T)).mul_((logit_map.scale / temperature) ** 2)
    return logprobs, entropies, LastLayerGradients(norms, expected, sizes, products)


def _score_products(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    logit_map: LogitMap,
    normalisers: Tensor,
    chunk: int,
) -> Tensor:
    """S S^T [N, N] of the scores e_y - p, summed over chunks of the vocabulary."""
    count, vocabulary = len(hidden), len(weight)
    products = normalisers.new_zeros(count, count)
    size = max(1, chunk * vocabulary // max(count, chunk))
    for start in range(0, vocabulary, size):
        part = slice(start, start + size)
        logits = matmul(hidden, weight[part].T)
        if bias is not None:
            logits += bias[part]
        slope = apply_map_(logits, logit_map)
        logp = logits.div_(temperature).sub_(normalisers[:, None])
        here = ((targets >= start) & (targets < start + size)).nonzero().squeeze(-1)
        columns = targets[here] - start
        at_target = logp[here, columns].expm1()
        negated = logp.exp_()
        negated[here, columns] = at_target
        if slope is not None:
            negated.mul_(slope)
        products += matmul(negated, negated.T)
    return products
