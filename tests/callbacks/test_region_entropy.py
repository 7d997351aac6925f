"""Entropy and shares of regions, by hand."""

import pytest
import torch

from src.callbacks.region_entropy import region_metrics, region_sums
from src.protocol.types import Region
from tests.callbacks.steps import group

T, F, N = Region.REASONING, Region.FORMAT, Region.TOOL_NAME


def test_region_entropy_by_hand():
    """Two completions of 2 and 4 tokens with advantages 1 and -2.

    entropy: reasoning (0.5 + 1.5 + 1.0) / 3 = 1.0; format (0.1 + 0.3) / 2 = 0.2; name 0.7.
    weight: reasoning (0.5 + 0.5 + 0.5) / 3 = 0.5; format (1.5 + 1.0) / 2 = 1.25; name 2.
    sum |A| w / T: reasoning 1*0.5/2 + 2*(0.5+0.5)/4 = 0.75; format 1*1.5/2 + 2*1/4 = 1.25; name 2*2/4 = 1; total 3.
    """
    made = group([T, F, T, T, F, N], [2, 4], [0.5, 1.5, 0.5, 0.5, 1.0, 2.0], [1.0, -2.0])
    metrics = region_metrics(region_sums(made, torch.tensor([0.5, 0.1, 1.5, 1.0, 0.3, 0.7])))
    expected = {
        "entropy/reasoning": 1.0,
        "entropy/format": 0.2,
        "entropy/tool_name": 0.7,
        "token_weight/reasoning": 0.5,
        "token_weight/format": 1.25,
        "token_weight/tool_name": 2.0,
        "token_share/reasoning": 3 / 6,
        "token_share/format": 2 / 6,
        "token_share/tool_name": 1 / 6,
        "gradient_share/reasoning": 0.25,
        "gradient_share/format": 1.25 / 3,
        "gradient_share/tool_name": 1 / 3,
    }
    assert metrics == pytest.approx({**metrics, **expected}, abs=1e-7)
    assert metrics["token_share/response"] == metrics["gradient_share/response"] == 0
    assert "entropy/response" not in metrics and "token_weight/response" not in metrics


def test_entropies_that_nobody_tells_are_in_no_mean():
    """The second completion was left out: reasoning's mean is of the first alone, shares and weights are of both."""
    made = group([T, F, T, N], [2, 2], [0.5, 1.5, 1.0, 2.0], [1.0, 0.0])
    metrics = region_metrics(region_sums(made, torch.tensor([0.5, 0.1, torch.nan, torch.nan])))
    assert metrics["entropy/reasoning"] == 0.5 and "entropy/tool_name" not in metrics
    assert metrics["token_share/reasoning"] == 0.5 and metrics["token_weight/reasoning"] == 0.75


def test_entropy_is_not_scaled_by_weights():
    entropies = torch.tensor([0.5, 0.1])
    light, heavy = (group([T, F], [2], [w, 1.0], [1.0]) for w in (0.001, 8.0))
    a, b = (region_metrics(region_sums(g, entropies)) for g in (light, heavy))
    assert a["entropy/reasoning"] == b["entropy/reasoning"] == 0.5
    assert a["gradient_share/reasoning"] < 0.01 < 0.8 < b["gradient_share/reasoning"]
