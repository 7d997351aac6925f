"""The curriculum on steps made by hand: Eq. 9 and 16-17, and Eq. 7 from measured second moments."""

from types import SimpleNamespace

import pytest
import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionFactors, RegionWeighting
from src.callbacks.curriculum import Curriculum
from src.protocol.types import Region
from src.training.step import RolloutStep
from tests.callbacks.steps import group, module_with

T, F, N = Region.REASONING, Region.FORMAT, Region.TOOL_NAME
MEASURED = RegionWeighting(RegionFactors(), initialiser="measured_variance", smoothing=0.5)
TABLE_F1 = RegionWeighting(
    factors=RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95),
    alpha_format=0.003,
    alpha_parameters=0.003,
    alpha_reasoning=6e-5,
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, {"format": 0.95, "tool_name": 1.2, "tool_parameters": 0.8, "reasoning": 0.016}),
        # 0.95 - 0.3, 0.8 + 0.3, 0.016 + 0.006
        (100, {"format": 0.65, "tool_name": 1.2, "tool_parameters": 1.1, "reasoning": 0.022}),
    ],
)
def test_curriculum_follows_the_rollout_step(step, expected):
    module, made = module_with(TABLE_F1), RolloutStep(step, [], [])
    factors = Curriculum().region_factors(module, made)
    logged = {key.removeprefix("curriculum/"): value for key, value in made.metrics.items()}
    assert logged == pytest.approx({**expected, "response": expected["reasoning"], "other": expected["format"]})
    assert factors.format == pytest.approx(expected["format"])


def test_curriculum_measures_equation_9_once_and_keeps_it():
    """H = 1 nat (reasoning), 0.25 (format), 0.125 (name): 1/H is 1, 4, 8, scaled by 1.2 / 8: 0.15, 0.6, 1.2."""
    weighting = RegionWeighting(RegionFactors(tool_name=1.2), initialiser="inverse_entropy")
    made = group([T, F, N], [3], [1.0] * 3, [1.0])
    callback, module = Curriculum(), module_with(weighting)
    first = callback.region_factors(module, RolloutStep(0, [], [made], [torch.tensor([1.0, 0.25, 0.125])]))
    assert (first.reasoning, first.format, first.tool_name) == pytest.approx((0.15, 0.6, 1.2))
    resumed = Curriculum()
    resumed.load_state_dict(callback.state_dict())
    for later in (callback, resumed):
        again = later.region_factors(module, RolloutStep(1, [], [made], [torch.tensor([0.1, 0.2, 0.9])]))
        assert again == first


def step_with(index: int, regions: list[int], moments: list[float] | None) -> RolloutStep:
    n = len(regions)
    group = PromptGroup(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.zeros(n, dtype=torch.int64),
        lengths=torch.tensor([n]),
        rollout_logprobs=torch.zeros(n),
        regions=torch.tensor(regions),
        rewards=torch.zeros(1),
        advantages=torch.zeros(1),
        weights=torch.ones(n),
    )
    step = RolloutStep(index, [], [group], [torch.zeros(n)])
    step.gradient_moments = None if moments is None else [torch.tensor(moments)]
    return step


def test_measured_weights_are_smoothed_over_steps_and_survive_a_checkpoint():
    """Step 0: reasoning (4 + 2) / 2 = 3, format 1: ratios to the mean 7/3 are 7/9 and 7/3, so 1/3 : 1.

    Step 1, smoothing 0.5: reasoning (0.5 * 6 + 1) / (0.5 * 2 + 1) = 2, format (0.5 * 1 + 7) / (0.5 * 1 + 1) = 5, so
    1 : 0.4. Step 2 has no format token: format stays at 5, reasoning (0.5 * 4 + 8) / (0.5 * 2 + 1) = 5, so 1 : 1.
    """
    callback, module = Curriculum(), module_with(MEASURED)
    first = step_with(0, [T, T, F], [4.0, 2.0, 1.0])
    factors = callback.region_factors(module, first)
    assert (factors.reasoning, factors.format) == pytest.approx((1 / 3, 1.0))
    assert first.metrics["curriculum/beta/reasoning"] == 3 and first.metrics["curriculum/beta/format"] == 1
    assert "curriculum/beta/tool_name" not in first.metrics
    resumed = Curriculum()
    resumed.load_state_dict(callback.state_dict())
    for later in (callback, resumed):
        step = step_with(1, [T, F], [1.0, 7.0])
        factors = later.region_factors(module, step)
        assert (step.metrics["curriculum/beta/reasoning"], step.metrics["curriculum/beta/format"]) == (2.0, 5.0)
        assert (factors.reasoning, factors.format) == pytest.approx((1.0, 0.4))
    step = step_with(2, [T], [8.0])
    factors = callback.region_factors(module, step)
    assert step.metrics["curriculum/beta/format"] == step.metrics["curriculum/beta/reasoning"] == pytest.approx(5.0)
    assert factors.reasoning == factors.format == pytest.approx(1.0)


def test_without_smoothing_only_the_last_step_counts():
    callback, module = Curriculum(), module_with(RegionWeighting(initialiser="measured_variance", smoothing=0.0))
    callback.region_factors(module, step_with(0, [T, F], [4.0, 1.0]))
    factors = callback.region_factors(module, step_with(1, [T, F], [1.0, 2.0]))
    assert (factors.reasoning, factors.format) == pytest.approx((1.0, 0.5))


def test_sums_are_of_all_ranks():
    """The other rank saw 3 format tokens with 5 in all: format (1 + 5) / 4 = 1.5 against reasoning's 3."""

    other = torch.zeros(2, 6, dtype=torch.float64)
    other[:, F] = torch.tensor([5.0, 3.0])
    module = module_with(MEASURED)
    module.ranks = SimpleNamespace(sum=lambda own: own + other)
    factors = Curriculum().region_factors(module, step_with(0, [T, T, F], [4.0, 2.0, 1.0]))
    assert (factors.reasoning, factors.format) == pytest.approx((0.5, 1.0))


def test_missing_moments_are_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"'measured_variance' needs .*gradient_moments, found None at step 3"):
        Curriculum().region_factors(module_with(MEASURED), step_with(3, [T], None))
