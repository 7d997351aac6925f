"""The paper's variance theory (section 3.1, Eq. 4-8) as measurements of the last layer's gradient. Pure functions.

For the head's weight W a token's gradient is (e_y - p) h^T / τ (`LastLayerGradients`), so the completions'
estimators g_i = A_i / T_i Σ_t w_t ∇ log p(y_t) and their variance follow from the tokens' inner products [N, N]. What
is measured is the sampling of completions for one prompt; how gradients differ between prompts is no part of it.

Three sizes of β_t, in the order in which Lemma 2 bounds them (the first one on average over the sampled token):

    measured    ||e_y - p||² ||J||²
    expected    (1 - Σp²)    ||J||²    its mean over the token that is sampled, given what came before
    surrogate   (1 - e^-H)   ||J||²    the theorem's β_t

||J||² = ||h||² / τ² is the spectral norm of J = dz/dW, for which ||J^T s|| = ||J|| ||s|| holds exactly. The paper's
Frobenius norm is V times that here: a common factor, which changes no weights, but makes the bound V times looser.

What a lower variance does not show: that the estimator is better. Other weights also change what it estimates: with
weights that are not uniform E[g] is no longer the gradient of the expected reward, and weights that depend on the
sampled token (its region does) leave E[w_t s_t] different from 0. Weights that shrink variance and signal alike win
nothing, so variance is reported beside ||E g||² (`signal`) and as their ratio. And advantages normalised in the group
make its completions dependent, a correction of O(1/G) to all of it (appendix B.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.algorithm.region_weights import sum_by_region
from src.protocol.types import Region

_MEANS = ("measured", "expected", "surrogate", "score", "score_surrogate", "jacobian")
_TINY = 1e-100  # below any second moment; keeps reciprocals finite


class EstimatorMoments(NamedTuple):
    """Moments of the G single-completion estimators g_i of one prompt; second_moment = variance + signal.

    Attributes:
        second_moment: mean of ||g_i||².
        variance: trace of their covariance, unbiased; the mean of G of them has 1 / G of it (Eq. 2).
        signal: unbiased estimate of ||E g||², the mean of <g_i, g_j> over i ≠ j; negative where noise hides it.
    """

    second_moment: float
    variance: float
    signal: float


def estimator_moments(gram: Tensor, advantages: Tensor, weights: Tensor, lengths: Tensor) -> EstimatorMoments:
    """Moments of g_i = A_i / T_i Σ_t w_t ∇ log p(y_t) from the inner products of the tokens' gradients.

    Two completions of one token, gradients (1, 0) and (0, 1), advantages 1 and -1: g = (1, 0), (0, -1), their mean
    (0.5, -0.5); each is 0.5 from it in the square, and the unbiased variance 2 * 0.5 / (2 - 1) = 1.

    >>> estimator_moments(torch.eye(2), torch.tensor([1.0, -1.0]), torch.ones(2), torch.tensor([1, 1]))
    EstimatorMoments(second_moment=1.0, variance=1.0, signal=0.0)

    Args:
        gram: [N, N], `LastLayerGradients.gram` of one group.
        advantages: [G].
        weights: [N].
        lengths: int64 [G], T_i, summing to N.

    Raises:
        ValueError: fewer than two completions, which have no variance.
    """
    count = len(lengths)
    if count < 2:
        raise ValueError(f"estimator_moments: expected at least 2 completions of the prompt, found {count}.")
    sequence = _sequence_ids(lengths)
    coefficients = advantages.double()[sequence] * weights.double() / lengths[sequence]
    sizes = lengths.tolist()
    products = gram.new_zeros(count, count, dtype=torch.float64)  # <g_i, g_j>
    for index, (own, rows) in enumerate(zip(coefficients.split(sizes), gram.split(sizes), strict=True)):
        products[index].index_add_(0, sequence, (own @ rows.double()) * coefficients)
    squares, total = float(products.trace()), float(products.sum())
    signal = (total - squares) / (count * (count - 1))
    return EstimatorMoments(squares / count, squares / count - signal, signal)


def normalised(weights: Tensor, lengths: Tensor) -> Tensor:
    """The weights with Σ_t w_t = T in each sequence (Eq. 5), float64 [N]; a sequence of zeros stays 0.

    >>> normalised(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([2, 1])).tolist()
    [0.5, 1.5, 0.0]
    """
    exact = weights.double()
    means = _sum_by_sequence(exact, lengths) / lengths
    return exact / torch.where(means > 0, means, 1.0)[_sequence_ids(lengths)]


def optimal_weights(beta: Tensor, lengths: Tensor, *, floor: float = 0.0) -> Tensor:
    """Eq. 7: w_t = T β_t^-1 / Σ_u β_u^-1 in each sequence, float64 [N].

    Given a mean β for each region instead, these are the best weights that are constant on regions: Σ n_r β_r w_r² is
    smallest under Σ n_r w_r = T for w_r ∝ 1 / β_r, β_r the arithmetic mean.

    >>> optimal_weights(torch.tensor([1.0, 3.0]), torch.tensor([2])).tolist()
    [1.5, 0.5]

    Args:
        beta: [N], at least 0.
        lengths: int64 [G], summing to N.
        floor: β is raised to this share of its mean over all N tokens. Without, tokens that are certain take all the
            weight (the degenerate case of appendix B.3); 0.01 lets none weigh more than 100 tokens of average β.
    """
    exact = beta.double()
    return normalised(1 / exact.clamp_min(max(floor * float(exact.mean()), _TINY)), lengths)


def variance_bound(beta: Tensor, advantages: Tensor, weights: Tensor, lengths: Tensor) -> float:
    """Theorem 1's bound E[A²] Σ_t β_t w_t² on the variance of a single completion's estimator, 1 / T_i included.

    Both expectations are means over the group. It rests on weights that do not depend on the sampled tokens and on
    advantages independent of them, neither of which holds in training, so a measured variance may exceed it.

    >>> variance_bound(torch.tensor([1.0, 3.0]), torch.tensor([2.0]), torch.tensor([1.5, 0.5]), torch.tensor([2]))
    3.0
    """
    scaled = weights.double() / lengths[_sequence_ids(lengths)]
    per_sequence = _sum_by_sequence(beta.double() * scaled.square(), lengths)
    return float(advantages.double().square().mean() * per_sequence.mean())


def surrogate_moments(jacobian_norms: Tensor, entropies: Tensor) -> Tensor:
    """The theorem's β_t = ||J_t||² (1 - e^-H_t) [N], from squared norms and entropies in nats."""
    return jacobian_norms * -torch.expm1(-entropies)


def moment_sums(
    score_norms: Tensor, expected_score_norms: Tensor, jacobian_norms: Tensor, entropies: Tensor, regions: Tensor
) -> Tensor:
    """Sums by region, float64 [10, 6], which add up over groups, ranks and steps; `moment_metrics` reads them.

    Args:
        score_norms: [N], ||e_y - p||².
        expected_score_norms: [N], 1 - Σp².
        jacobian_norms: [N], ||J||².
        entropies: [N], nats.
        regions: int64 [N].
    """
    score, jacobian = score_norms.double(), jacobian_norms.double()
    impurity = -torch.expm1(-entropies.double())
    rows = (
        torch.ones_like(score),
        score * jacobian,
        expected_score_norms * jacobian,
        impurity * jacobian,
        score,
        impurity,
        jacobian,
        score.square(),
        impurity.square(),
        score * impurity,
    )
    return torch.stack([sum_by_region(row, regions) for row in rows]).cpu()


def moment_metrics(sums: Tensor) -> dict[str, float]:
    """Means by region, and over all tokens; a region without tokens has none.

    Keys `moment/<region>/…`: `measured`, `expected` and `surrogate` as in the module's docstring; their factors `score`
    (||e_y - p||²), `score_surrogate` (1 - e^-H) and `jacobian` (||J||²); `correlation` over tokens of the two scores,
    where both vary.

    Args:
        sums: float64 [10, 6], of `moment_sums`, added up.
    """
    metrics: dict[str, float] = {}
    labels = [*(region.label for region in Region), "all"]
    for label, column in zip(labels, torch.cat([sums, sums.sum(1, keepdim=True)], 1).T, strict=True):
        if not column[0]:
            continue
        means = [float(value) for value in column[1:] / column[0]]
        metrics |= {f"moment/{label}/{name}": value for name, value in zip(_MEANS, means[:6], strict=True)}
        (x, y), (xx, yy, xy) = means[3:5], means[6:]
        spread = [xx - x * x, yy - y * y]
        if spread[0] > 1e-12 * xx and spread[1] > 1e-12 * yy:
            metrics[f"moment/{label}/correlation"] = (xy - x * y) / (spread[0] * spread[1]) ** 0.5
    return metrics


def _sequence_ids(lengths: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def _sum_by_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [G] of values [N]."""
    return values.new_zeros(len(lengths)).index_add_(0, _sequence_ids(lengths), values)
