"""Moments against gradients written out; Theorems 1 and 2 on a toy of which every trajectory is enumerated."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from src.algorithm.region_weights import RegionFactors, RegionWeighting, variance_factors
from src.models.head.gradients import last_layer_gradients
from src.protocol.types import Region
from src.wings.theory.gradient_variance import (
    estimator_moments,
    moment_metrics,
    moment_sums,
    normalised,
    optimal_weights,
    surrogate_moments,
    variance_bound,
)

F, N, P, R, S, OTHER = Region


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_estimator_moments_are_those_of_the_gradients_written_out() -> None:
    tokens, lengths = random(10, 6), torch.tensor([4, 1, 5])
    advantages, weights = torch.tensor([1.2, -0.7, 0.4]), random(10, seed=1).abs()
    found = estimator_moments(tokens @ tokens.T, advantages, weights, lengths)
    parts = zip(advantages, (tokens * weights[:, None]).split(lengths.tolist()), strict=True)
    g = torch.stack([a * part.sum(0) / len(part) for a, part in parts])
    assert found.second_moment == pytest.approx(float(g.square().sum(1).mean()), rel=1e-6)
    assert found.variance == pytest.approx(float(g.var(0).sum()), rel=1e-6)
    pairs = [float(g[i] @ g[j]) for i, j in product(range(3), repeat=2) if i != j]
    assert found.signal == pytest.approx(sum(pairs) / 6, rel=1e-6)
    assert found.second_moment == pytest.approx(found.variance + found.signal, rel=1e-12)


def test_one_completion_has_no_variance() -> None:
    with pytest.raises(ValueError, match="expected at least 2 completions of the prompt, found 1"):
        estimator_moments(torch.eye(2), torch.ones(1), torch.ones(2), torch.tensor([2]))


def test_optimal_weights_sum_to_the_length_and_are_bounded_by_the_floor() -> None:
    # 1/β: 1, 1/2, 1/4 (sum 7/4) and 2: 3 * (4, 2, 1) / 7, and 1.
    beta, lengths = torch.tensor([1.0, 2.0, 4.0, 0.5]), torch.tensor([3, 1])
    torch.testing.assert_close(
        optimal_weights(beta, lengths), torch.tensor([12, 6, 3, 7], dtype=torch.float64) / 7, atol=1e-15, rtol=0
    )
    # β = (0, 3): all on the certain token; floored at a tenth of the mean 1.5: 1/0.15 against 1/3, 20 : 1.
    certain, pair = torch.tensor([0.0, 3.0]), torch.tensor([2])
    torch.testing.assert_close(optimal_weights(certain, pair), torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(
        optimal_weights(certain, pair, floor=0.1), torch.tensor([40 / 21, 2 / 21], dtype=torch.float64)
    )
    assert optimal_weights(torch.zeros(2), pair).tolist() == [1.0, 1.0]


def test_sequence_without_weights_stays_at_0() -> None:
    assert normalised(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([2, 1])).tolist() == [0.0, 0.0, 1.0]


def toy() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two tokens of a vocabulary of 3, all nine trajectories enumerated; h_1 depends on the first token.

    Returns probabilities [9] of the trajectories, their tokens' gradients [9, 2, V d], and the exact β_t [2] with
    1 - e^-H and with 1 - Σp².
    """
    weight, first, second = random(3, 4), random(4, seed=1), random(3, 4, seed=2)
    probabilities, gradients, sizes = [], [], []
    for y0, y1 in product(range(3), repeat=2):
        hidden, targets = torch.stack([first, second[y0]]), torch.tensor([y0, y1])
        logp, entropies, found = last_layer_gradients(hidden, weight, targets)
        scores = torch.eye(3, dtype=torch.float64)[targets] - (hidden @ weight.T).softmax(-1)
        gradients.append(torch.einsum("tv,td->tvd", scores, hidden).flatten(1))
        sizes.append(torch.stack([surrogate_moments(found.jacobian_norms, entropies), found.expected_second_moments]))
        probabilities.append(logp.sum().exp())
    probability = torch.stack(probabilities)
    surrogate, expected = (probability[:, None, None] * torch.stack(sizes)).sum(0)
    return probability, torch.stack(gradients), surrogate, expected


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.4, 1.6), (1.7, 0.3)])
def test_theorem_1_bounds_the_variance(weights: tuple[float, float]) -> None:
    """Weights fixed by position and advantages of ±1 independent of the tokens, as the theorem assumes.

    Then E g = 0, the variance is E||Σ w_t ∇log p||² / T², and martingale differences make it Σ w_t² (1 - Σp²)||J||²
    / T² exactly, below the bound with 1 - e^-H.
    """
    probability, gradients, surrogate, expected = toy()
    w, lengths, signs = torch.tensor(weights, dtype=torch.float64), torch.tensor([2]), torch.ones(1)
    variance = float(probability @ (gradients * w[:, None]).sum(1).square().sum(1)) / 4
    assert variance == pytest.approx(variance_bound(expected, signs, w, lengths), rel=1e-12)
    assert variance < variance_bound(surrogate, signs, w, lengths) < 2 * variance


def test_theorem_2_gives_the_smallest_bound() -> None:
    _, _, beta, _ = toy()
    lengths, signs = torch.tensor([2]), torch.ones(1)
    best, smallest = optimal_weights(beta, lengths), float(1 / (1 / beta).sum())  # Eq. 8, advantages of 1
    assert variance_bound(beta, signs, best, lengths) == pytest.approx(smallest, rel=1e-12)
    for step in (-0.1, 0.1):
        moved = best + torch.tensor([step, -step])
        assert variance_bound(beta, signs, moved, lengths) > smallest


def test_mean_by_region_gives_the_best_weights_that_are_constant_on_regions() -> None:
    beta, region = torch.tensor([1.0, 3.0, 8.0, 0.5, 0.1]).double(), torch.tensor([0, 0, 0, 1, 1])
    lengths, one = torch.tensor([5]), torch.ones(1)
    means = torch.tensor([4.0, 0.3]).double()
    best = optimal_weights(means[region], lengths)
    bound = variance_bound(beta, one, best, lengths)
    for scale in (0.9, 1.1):
        other = normalised(torch.where(region == 0, scale * best, best), lengths)
        assert variance_bound(beta, one, other, lengths) > bound


def test_moment_metrics_by_hand_and_added_up() -> None:
    """Three reasoning tokens: scores 0.5, 1, 1.5 against 1 - e^-H of 0.25, 0.5, 0.75, which are proportional.

    ||J||² = 2, 1, 4: measured (1 + 1 + 6) / 3, surrogate (0.5 + 0.5 + 3) / 3; one format token.
    """
    score, impurity = torch.tensor([0.5, 1.0, 1.5, 0.2]), torch.tensor([0.25, 0.5, 0.75, 0.1])
    jacobian, regions = torch.tensor([2.0, 1.0, 4.0, 1.0]), torch.tensor([R, R, R, F])
    columns = (score, score / 2, jacobian, -torch.log1p(-impurity), regions)
    parts = [moment_sums(*(column[part] for column in columns)) for part in (slice(0, 1), slice(1, 4))]
    metrics = moment_metrics(parts[0] + parts[1])
    assert metrics == pytest.approx(moment_metrics(moment_sums(*columns)), rel=1e-12)
    expected = {
        "moment/reasoning/measured": 8 / 3,
        "moment/reasoning/expected": 4 / 3,
        "moment/reasoning/surrogate": 4 / 3,
        "moment/reasoning/score": 1.0,
        "moment/reasoning/score_surrogate": 0.5,
        "moment/reasoning/jacobian": 7 / 3,
        "moment/reasoning/correlation": 1.0,
        "moment/format/measured": 0.2,
        "moment/all/measured": 8.2 / 4,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert "moment/format/correlation" not in metrics and not any("tool_name" in key for key in metrics)


def sums_of(betas: dict[Region, tuple[float, int]]) -> Tensor:
    """Sums [2, 6] from (β, tokens) by region."""
    sums = torch.zeros(2, len(Region), dtype=torch.float64)
    for region, (beta, tokens) in betas.items():
        sums[:, region] = torch.tensor([beta * tokens, tokens])
    return sums


MEASURED = sums_of({R: (0.5, 60), F: (0.1, 30), N: (0.01, 10)})
WEIGHTING = RegionWeighting(RegionFactors(tool_parameters=0.7), initialiser="measured_variance")


def test_measured_factors_by_hand() -> None:
    # Mean β = (30 + 3 + 0.1) / 100 = 0.331: ratios 0.662, 3.31, 33.1 -> 8; scaled by 1/8. No parameters were seen.
    found = variance_factors(WEIGHTING, MEASURED)
    assert (found.reasoning, found.format, found.tool_name) == pytest.approx((0.662 / 8, 3.31 / 8, 1.0))
    assert found.tool_parameters == 0.7 and found.response is None


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_measured_factors_do_not_depend_on_the_scale_of_the_moments(scale: float) -> None:
    scaled = MEASURED * torch.tensor([[scale], [1.0]])
    assert variance_factors(WEIGHTING, scaled).table().tolist() == pytest.approx(
        variance_factors(WEIGHTING, MEASURED).table().tolist(), rel=1e-12
    )


def test_measured_factors_are_not_cut_again_by_the_curriculums_caps() -> None:
    # Reasoning has the smallest β and would be 1.2, above max_reasoning = 1.
    weighting = replace(WEIGHTING, factors=RegionFactors(tool_name=1.2))
    found = variance_factors(weighting, sums_of({R: (0.1, 10), F: (0.4, 10)}))
    assert (found.reasoning, found.format) == pytest.approx((1.0, 0.25))
    later = weighting.factors_at(found, 50.0)
    assert (later.reasoning, later.format) == pytest.approx((1.0, 0.25))


def test_regions_switched_off_or_certain_or_unnamed_by_the_paper() -> None:
    off = replace(WEIGHTING, factors=RegionFactors(other=0.0))
    found = variance_factors(off, sums_of({S: (1.0, 5), OTHER: (0.5, 5), F: (0.0, 5)}))
    assert found.other == 0.0  # off
    assert found.format == 1.0 and found.response == pytest.approx(0.5 / 8)  # β = 0 is clipped at 8 x the mean of 0.5
    assert variance_factors(WEIGHTING, torch.zeros(2, 6)) == WEIGHTING.factors
    certain = variance_factors(WEIGHTING, sums_of({R: (0.0, 5), F: (0.0, 5)}))
    assert certain.reasoning == certain.format == 1.0


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_that_never_learns_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"algorithm\.weighting\.smoothing: expected at least 0 and below 1"):
        RegionWeighting(smoothing=smoothing)
