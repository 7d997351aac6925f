"""Weights by region: Table F.1's numbers at rollout steps 0 and 100, both Eq. 9 initialisers, normalisations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from src.algorithm.region_weights import (
    RegionFactors,
    RegionWeighting,
    batch_token_weights,
    entropy_factors,
    sum_by_region,
    token_weights,
)
from src.protocol.types import Region

F, N, P, R, S, OTHER = Region

TABLE_F1 = RegionWeighting(
    factors=RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95),
    alpha_format=0.003,
    alpha_parameters=0.003,
    alpha_reasoning=6e-5,
)
MEASURED = {N: 0.1, F: 0.25, P: 0.5, R: 1.0}


def factors_of(weighting: RegionWeighting, progress: float) -> dict[str, float]:
    table = weighting.factors_at(weighting.initial_factors(), progress).table()
    return {region.label: pytest.approx(table[region].item(), abs=1e-12) for region in Region}


def test_curriculum_of_table_f1() -> None:
    assert factors_of(TABLE_F1, 0) == {
        "format": 0.95, "tool_name": 1.2, "tool_parameters": 0.8, "reasoning": 0.016, "response": 0.016, "other": 0.95,
    }  # fmt: skip
    # 0.95 - 0.003 * 100, 0.8 + 0.003 * 100, 0.016 + 6e-5 * 100.
    assert factors_of(TABLE_F1, 100) == {
        "format": 0.65, "tool_name": 1.2, "tool_parameters": 1.1, "reasoning": 0.022, "response": 0.022, "other": 0.65,
    }  # fmt: skip


def test_curriculum_stops_at_its_caps() -> None:
    # Format would reach 0 at step 317, parameters 1.2 at step 134, reasoning 1 at step 16,400.
    late = factors_of(TABLE_F1, 1e5)
    assert (late["format"], late["tool_parameters"], late["reasoning"]) == (0.001, 1.2, 1.0)
    assert factors_of(replace(TABLE_F1, max_parameters=9.0), 1e5)["tool_parameters"] == 8.0


def test_region_switched_off_stays_off() -> None:
    no_thought = replace(TABLE_F1, factors=replace(TABLE_F1.factors, reasoning=0.0))
    found = factors_of(no_thought, 100)
    assert found["reasoning"] == found["response"] == 0.0
    published = replace(TABLE_F1, factors=replace(TABLE_F1.factors, response=0.0, other=0.0))
    found = factors_of(published, 100)
    assert found["response"] == found["other"] == 0.0 and found["reasoning"] == 0.022


def test_weights_of_a_sequence_at_steps_0_and_100() -> None:
    # Step 0: factors .95 .016 .016 .95 1.2 .8 .95 sum to 4.882, mean 4.882 / 7.
    # Step 100: .65 .022 .022 .65 1.2 1.1 .65 sum to 4.294, mean 4.294 / 7.
    regions, lengths = torch.tensor([F, R, R, F, N, P, F]), torch.tensor([7])
    for progress, (fmt, reasoning, parameters), total in (
        (0, (0.95, 0.016, 0.8), 4.882),
        (100, (0.65, 0.022, 1.1), 4.294),
    ):
        factors = TABLE_F1.factors_at(TABLE_F1.initial_factors(), progress)
        raw = [fmt, reasoning, reasoning, fmt, 1.2, parameters, fmt]
        expected = [7 * factor / total for factor in raw]
        found = token_weights(factors, regions, lengths)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
        assert found.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_normalisations_by_hand() -> None:
    factors = RegionFactors(format=1.0, reasoning=0.25)
    regions, lengths = torch.tensor([R, F, R, R, F]), torch.tensor([2, 3])
    # Means .625 and .5; over both 2.75 / 5 = .55.
    sequence = token_weights(factors, regions, lengths)
    assert sequence.tolist() == pytest.approx([0.4, 1.6, 0.5, 0.5, 2.0], abs=1e-6)
    whole = token_weights(factors, regions, lengths, normalisation="global")
    assert whole.tolist() == pytest.approx([0.25 / 0.55, 1 / 0.55, 0.25 / 0.55, 0.25 / 0.55, 1 / 0.55], abs=1e-6)
    assert token_weights(factors, regions, lengths, normalisation="none").tolist() == [0.25, 1.0, 0.25, 0.25, 1.0]


def test_sequence_of_switched_off_regions_has_no_weight() -> None:
    factors = RegionFactors(response=0.0)
    found = token_weights(factors, torch.tensor([S, S, F, S]), torch.tensor([2, 2]))
    assert found.tolist() == pytest.approx([0.0, 0.0, 2.0, 0.0], abs=1e-6)


def test_positive_normalisation_leaves_zeros_out_of_the_mean() -> None:
    # Factors 0 1 .5 | 0 0 | .5 .5 0 0: means of the positive ones .75 | none | .5.
    factors = RegionFactors(format=1.0, reasoning=0.5, response=0.0)
    regions, lengths = torch.tensor([S, F, R, S, S, R, R, S, S]), torch.tensor([3, 2, 4])
    found = token_weights(factors, regions, lengths, normalisation="positive")
    assert found.tolist() == pytest.approx([0, 4 / 3, 2 / 3, 0, 0, 1, 1, 0, 0], abs=1e-6)
    # Without a factor of 0 it is Eq. 18.
    factors = RegionFactors(format=1.0, reasoning=0.5)
    both = [token_weights(factors, regions, lengths, normalisation=n) for n in ("positive", "sequence")]
    assert torch.equal(*both)


@pytest.mark.parametrize("normalisation", ["sequence", "positive", "global", "none"])
def test_groups_weighed_at_once_have_the_weights_of_each_alone(normalisation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    factors = RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95, response=0.0)
    lengths = [torch.randint(1, 300, (size,), generator=generator) for size in (8, 1, 3, 8)]
    regions = [torch.randint(0, 6, (int(sizes.sum()),), generator=generator) for sizes in lengths]
    found = batch_token_weights(factors, regions, lengths, normalisation=normalisation, delta=1e-6)
    for weights, group, sizes in zip(found, regions, lengths, strict=True):
        alone = token_weights(factors, group, sizes, normalisation=normalisation, delta=1e-6)
        assert torch.equal(weights, alone)
    assert batch_token_weights(factors, [], [], normalisation=normalisation) == []


def test_default_weighting_is_grpo() -> None:
    weighting = RegionWeighting()
    regions = torch.tensor([F, N, P, R, S, OTHER])
    for progress in (0, 1000):
        factors = weighting.factors_at(weighting.initial_factors(), progress)
        assert token_weights(factors, regions, torch.tensor([2, 4])).tolist() == pytest.approx([1.0] * 6, abs=1e-6)


def test_inverse_entropy_by_hand() -> None:
    # 1/H: 10 4 2 1, clipped at 8: 8 4 2 1, scaled by 1.2 / 8.
    found = entropy_factors(replace(TABLE_F1, initialiser="inverse_entropy"), MEASURED)
    assert (found.tool_name, found.format, found.tool_parameters, found.reasoning) == pytest.approx(
        (1.2, 0.6, 0.3, 0.15)
    )
    assert found.response is None and found.other is None


def test_inverse_impurity_by_hand() -> None:
    # 1/(1 - e^-H): 10.508, 4.5208, 2.5415, 1.5820; the first is clipped at 8.
    found = replace(TABLE_F1, initialiser="inverse_impurity").initial_factors(MEASURED)
    expected = [0.15 * min(8.0, 1 / (1 - math.exp(-MEASURED[region]))) for region in (N, F, P, R)]
    assert [found.tool_name, found.format, found.tool_parameters, found.reasoning] == pytest.approx(expected)


@pytest.mark.parametrize("initialiser", ["inverse_entropy", "inverse_impurity"])
def test_initialisers_survive_odd_measurements(initialiser: str) -> None:
    weighting = replace(TABLE_F1, initialiser=initialiser)
    # A region without entropy takes the bound; one that was not measured keeps its factor.
    found = weighting.initial_factors({N: 0.0, R: 1e9})
    assert found.tool_name == pytest.approx(1.2) and found.format == 0.95 and 0 < found.reasoning < found.tool_name
    assert weighting.initial_factors({}) == TABLE_F1.factors
    with pytest.raises(ValueError, match="needs the mean entropy of each region"):
        weighting.initial_factors()


def test_sum_by_region() -> None:
    found = sum_by_region(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([F, R, F]))
    assert found.tolist() == [5.0, 0.0, 0.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalisation": "batch"}, r"algorithm\.weighting\.normalisation: expected one of .*found 'batch'"),
        ({"w_min": 2.0, "w_max": 1.0}, r"w_min=2\.0 and w_max=1\.0"),
        ({"alpha_format": -0.1}, r"alpha_format: expected at least 0"),
        ({"delta": 0.0}, r"delta: expected more than 0"),
    ],
)
def test_refuses_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionWeighting(**settings)
    with pytest.raises(ValueError, match=r"factors\.format: expected at least 0"):
        RegionFactors(format=-1.0)
