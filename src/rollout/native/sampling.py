"""From logits to tokens: temperature, top-k, top-p and inverse-CDF sampling with noise that belongs to one prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.rollout.engine import SamplingParams

BLOCK = 256
BLOCKS_FROM = 2048
"""Rows of at least this many weights are searched in two steps."""


def prompt_noise(seed: int, n: int, max_new_tokens: int) -> Tensor:
    """All the randomness of one prompt's completions, drawn before any of them starts.

    A prompt's noise depends on its seed alone, so its completions do not change with what else is in the batch or with
    the device. The global random state is neither read nor advanced.

    Args:
        seed: the prompt's seed, any int.
        n: completions of the prompt.
        max_new_tokens: longest completion.

    Returns:
        float64 [n, max_new_tokens] on the CPU, uniform in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, max_new_tokens, generator=generator, dtype=torch.float64)


class SampledTokens(NamedTuple):
    """A token of each of R rows, under the temperature-scaled distribution before top-k and top-p.

    Attributes:
        ids: int64 [R].
        logprobs: float32 [R], over the whole vocabulary (unscaled when greedy).
        entropies: float32 [R], of that distribution, in nats; NaN when greedy.
    """

    ids: Tensor
    logprobs: Tensor
    entropies: Tensor


def sample_tokens(logits: Tensor, noise: Tensor | None, params: SamplingParams) -> SampledTokens:
    """Choose one token a row.

    Args:
        logits: [R, V], any float type.
        noise: float64 [R], uniform in [0, 1); None when greedy.
        params: temperature, top_k and top_p are read.

    Raises:
        ValueError: a temperature over 0 without noise.
    """
    scaled = logits.float()
    if params.temperature == 0:
        tokens = scaled.argmax(dim=-1)
        logprobs = _chosen(scaled, tokens) - scaled.logsumexp(dim=-1)
        return SampledTokens(tokens, logprobs, torch.full_like(logprobs, torch.nan))
    if noise is None:
        raise ValueError(f"sample_tokens: expected noise at temperature {params.temperature}, found None.")
    if params.temperature != 1:
        scaled = scaled / params.temperature
    probabilities = scaled.softmax(dim=-1)
    tokens = _draw(probabilities, noise, params.top_k, params.top_p)
    logprobs = _chosen(probabilities, tokens).log()
    means = probabilities.mul_(scaled).sum(dim=-1)
    return SampledTokens(tokens, logprobs, _chosen(scaled, tokens) - logprobs - means)  # H = log Z - Σ p z


def _chosen(values: Tensor, tokens: Tensor) -> Tensor:
    """The entry of each row of `values` [R, V] at `tokens` [R]."""
    return values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _draw(probabilities: Tensor, noise: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sample each row of `probabilities` [R, V] by `noise` [R] after top-k, then top-p of what top-k kept."""
    vocabulary = probabilities.shape[-1]
    if 0 < top_k < vocabulary:
        ranked, ids = probabilities.topk(top_k, dim=-1)
    elif top_p < 1:
        ranked, ids = probabilities.sort(dim=-1, descending=True)
    else:
        return inverse_cdf(probabilities, noise)
    if top_p < 1:
        ranked = nucleus(ranked, top_p)
    return _chosen(ids, inverse_cdf(ranked, noise))


def nucleus(ranked: Tensor, top_p: float) -> Tensor:
    """Zero what lies outside the smallest head of a sorted distribution that holds the share `top_p` of its mass.

    Example:
        ranked [0.5, 0.3, 0.15, 0.05] with top_p 0.7: the mass before each token is [0, 0.5, 0.8, 0.95]; tokens with
        less than 0.7 before them stay, which gives [0.5, 0.3, 0, 0]. The first token always stays.

    Args:
        ranked: [R, K], descending, not necessarily normalised.
        top_p: in (0, 1].

    Returns:
        [R, K], not renormalised.
    """
    mass = ranked.cumsum(dim=-1, dtype=torch.float64)
    outside = (mass - ranked) >= top_p * mass[:, -1:]
    outside[:, 0] = False
    return ranked.masked_fill(outside, 0)


def inverse_cdf(weights: Tensor, noise: Tensor) -> Tensor:
    """Index of the first entry whose cumulative weight exceeds the share `noise` of the row's total.

    Example:
        weights [1, 0, 2, 1], cumulative [1, 1, 3, 4]; noise 0.25 is 1 of 4, the first cumulative weight above it is 3:
        index 2. Noise in [0, 0.25) gives 0, in [0.75, 1) gives 3, and nothing gives 1.

    Args:
        weights: [R, K], non-negative, with a positive total in each row.
        noise: float64 [R], in [0, 1).

    Returns:
        int64 [R], never an entry of weight zero.
    """
    count = weights.shape[-1]
    if count < BLOCKS_FROM:
        cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
        return _first_above(weights, cumulative, noise * cumulative[:, -1])
    # a cumulative sum over a vocabulary is slow: over blocks of it first, then over the entries of one block
    whole = count // BLOCK
    sums = weights[:, : whole * BLOCK].unflatten(-1, (whole, BLOCK)).sum(dim=-1)
    if whole * BLOCK < count:
        sums = torch.cat((sums, weights[:, whole * BLOCK :].sum(dim=-1, keepdim=True)), dim=-1)
    cumulative = sums.cumsum(dim=-1, dtype=torch.float64)
    target = noise * cumulative[:, -1]
    block = _first_above(sums, cumulative, target)
    target = target - (_chosen(cumulative, block) - _chosen(sums, block))
    places = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=weights.device)
    entries = weights.gather(-1, places.clamp(max=count - 1)).masked_fill_(places >= count, 0)
    return block * BLOCK + _first_above(entries, entries.cumsum(dim=-1, dtype=torch.float64), target.clamp(min=0))


def _first_above(weights: Tensor, cumulative: Tensor, target: Tensor) -> Tensor:
    """Index of the first entry of each row whose `cumulative` weight [R, K] exceeds `target` [R]; never a zero's."""
    total = cumulative[:, -1]
    # Noise just under 1 times the total may round to the total itself, which no entry exceeds.
    threshold = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, threshold.unsqueeze(-1), right=True).clamp_(max=weights.shape[-1] - 1)
    if weights.device.type == "cpu":
        return index.squeeze(-1)  # summed one after the other: a zero never steps up
    # A parallel scan may step up by a rounding error at a zero; the likeliest entry is then as near as any.
    hit_zero = weights.gather(-1, index) == 0
    return torch.where(hit_zero, weights.argmax(dim=-1, keepdim=True), index).squeeze(-1)
