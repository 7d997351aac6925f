"""Sampling: inverse CDF, nucleus, log-probabilities and the distribution that comes out."""

import math

import pytest
import torch

from src.rollout.engine import SamplingParams
from src.rollout.native.sampling import inverse_cdf, nucleus, prompt_noise, sample_tokens


def test_inverse_cdf_by_hand():
    # cumulative 1, 1, 3, 4 of 4: [0, .25) -> 0, [.25, .75) -> 2, [.75, 1) -> 3; index 1 has no weight
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0]).expand(6, 4)
    assert inverse_cdf(weights, noise).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_picks_a_zero_nor_leaves_the_row():
    below_one = 1 - 2.0**-53
    noise = torch.tensor([0.0, below_one, below_one, 0.0], dtype=torch.float64)
    weights = torch.tensor([[0, 0, 3, 0], [0.7, 0.3, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1e-30]])
    assert inverse_cdf(weights, noise).tolist() == [2, 1, 2, 3]


def test_a_long_row_is_searched_in_blocks_with_the_same_result():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(64, 3 * 2048 + 77, generator=generator).pow(8)  # not a whole number of blocks
    weights[:, 500:1500] = 0
    noise = prompt_noise(1, 1, 64)[0]
    noise[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    plain = torch.searchsorted(weights.double().cumsum(-1), (noise * weights.double().sum(-1))[:, None], right=True)
    assert torch.equal(inverse_cdf(weights, noise)[2:], plain[2:, 0])
    picked = weights.gather(-1, inverse_cdf(weights, noise)[:, None])
    assert picked.min() > 0
    alone = torch.zeros(1, 5000)
    alone[0, 4999] = 1e-30
    assert inverse_cdf(alone, noise[1:2]).tolist() == inverse_cdf(alone, noise[:1]).tolist() == [4999]


def test_nucleus_by_hand():
    # mass before each token: 0, .5, .8, .95
    ranked = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert nucleus(ranked, 0.7).count_nonzero() == 2
    assert nucleus(ranked, 0.9).count_nonzero() == 3
    assert nucleus(ranked, 1e-9).tolist() == [[0.5, 0, 0, 0]]
    # 10 = twice .5 and so on: shares count, not sums
    assert nucleus(ranked * 2, 0.7).count_nonzero() == 2


def test_logprobs_are_of_the_scaled_full_distribution():
    # logits ln 1, ln 2, ln 5 at temperature 0.5 become 1, 4, 25 of 30; top_k 1 leaves token 2: ln(25/30).
    # entropy: ln 30 - (4 ln 4 + 25 ln 25) / 30
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    params = SamplingParams(temperature=0.5, top_k=1)
    tokens, logprobs, entropies = sample_tokens(logits, torch.tensor([0.5], dtype=torch.float64), params)
    assert tokens.tolist() == [2]
    assert logprobs.item() == pytest.approx(math.log(25 / 30), abs=1e-6)
    expected = math.log(30) - (4 * math.log(4) + 25 * math.log(25)) / 30
    assert entropies.item() == pytest.approx(expected, abs=1e-6)
    # greedy: unscaled, 5 of 8
    tokens, logprobs, _ = sample_tokens(logits, None, SamplingParams(temperature=0))
    assert (tokens.item(), logprobs.item()) == (2, pytest.approx(math.log(5 / 8), abs=1e-6))


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0.1, 0.4, 0.05, 0.25, 0.2]),
        (3, 1.0, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        # before each in order 1, 3, 4, 0, 2: 0, .4, .65, .85, .95
        (0, 0.6, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        # of the three kept: .47, .29, .24; .76 lies before the third
        (3, 0.7, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ],
)
def test_frequencies_follow_the_distribution(top_k, top_p, expected):
    count = 40_000
    logits = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log().expand(count, 5)
    params = SamplingParams(top_k=top_k, top_p=top_p)
    tokens, *_ = sample_tokens(logits, prompt_noise(7, 1, count)[0], params)
    observed = tokens.bincount(minlength=5).double()
    wanted = torch.tensor(expected, dtype=torch.float64) * count
    kept = wanted > 0
    assert observed[~kept].sum() == 0
    chi_square = ((observed - wanted)[kept] ** 2 / wanted[kept]).sum().item()
    # 99.9th percentiles of chi-square with 1, 2 and 4 degrees of freedom
    assert chi_square < {1: 10.83, 2: 13.82, 4: 18.47}[int(kept.sum()) - 1]


def test_noise_is_the_seeds_own():
    state = torch.get_rng_state()
    first, again, other = prompt_noise(3, 2, 5), prompt_noise(3, 2, 5), prompt_noise(4, 2, 5)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.dtype == torch.float64 and first.unique().numel() == 10
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_without_noise_is_an_error():
    with pytest.raises(ValueError, match=r"expected noise at temperature 1\.0"):
        sample_tokens(torch.zeros(1, 3), None, SamplingParams())
