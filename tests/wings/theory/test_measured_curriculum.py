"""Weights from measured second moments: what is summed, smoothed, kept in checkpoints and asked for."""

from types import SimpleNamespace

import pytest
import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionFactors, RegionWeighting
from src.callbacks.curriculum import Curriculum
from src.protocol.types import Region
from src.training.step import RolloutStep

T, F = Region.REASONING, Region.FORMAT
WEIGHTING = RegionWeighting(RegionFactors(), initialiser="measured_variance", smoothing=0.5)


def one_rank():
    return SimpleNamespace(strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor))


def module_with(weighting: RegionWeighting = WEIGHTING):
    algorithm = SimpleNamespace(weighting=weighting)
    return SimpleNamespace(algorithm=algorithm, progress=0.0, device=torch.device("cpu"), region_factors=None)


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
    callback, module = Curriculum(), module_with()
    first = step_with(0, [T, T, F], [4.0, 2.0, 1.0])
    callback.on_rollout(one_rank(), module, first)
    assert (module.region_factors.reasoning, module.region_factors.format) == pytest.approx((1 / 3, 1.0))
    assert first.metrics["curriculum/beta/reasoning"] == 3 and first.metrics["curriculum/beta/format"] == 1
    assert "curriculum/beta/tool_name" not in first.metrics
    resumed = Curriculum()
    resumed.load_state_dict(callback.state_dict())
    for later in (callback, resumed):
        step = step_with(1, [T, F], [1.0, 7.0])
        later.on_rollout(one_rank(), module, step)
        assert (step.metrics["curriculum/beta/reasoning"], step.metrics["curriculum/beta/format"]) == (2.0, 5.0)
        assert (module.region_factors.reasoning, module.region_factors.format) == pytest.approx((1.0, 0.4))
    step = step_with(2, [T], [8.0])
    callback.on_rollout(one_rank(), module, step)
    assert step.metrics["curriculum/beta/format"] == step.metrics["curriculum/beta/reasoning"] == pytest.approx(5.0)
    assert module.region_factors.reasoning == module.region_factors.format == pytest.approx(1.0)


def test_without_smoothing_only_the_last_step_counts():
    callback, module = Curriculum(), module_with(RegionWeighting(initialiser="measured_variance", smoothing=0.0))
    callback.on_rollout(one_rank(), module, step_with(0, [T, F], [4.0, 1.0]))
    callback.on_rollout(one_rank(), module, step_with(1, [T, F], [1.0, 2.0]))
    assert (module.region_factors.reasoning, module.region_factors.format) == pytest.approx((1.0, 0.5))


def test_sums_are_of_all_ranks():
    """The other rank saw 3 format tokens with 5 in all: format (1 + 5) / 4 = 1.5 against reasoning's 3."""

    def reduce(tensor, reduce_op):
        assert reduce_op == "sum"
        other = torch.zeros(2, 6, dtype=torch.float64)
        other[:, F] = torch.tensor([5.0, 3.0])
        return tensor + other

    module = module_with()
    two_ranks = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce))
    Curriculum().on_rollout(two_ranks, module, step_with(0, [T, T, F], [4.0, 2.0, 1.0]))
    assert (module.region_factors.reasoning, module.region_factors.format) == pytest.approx((0.5, 1.0))


def test_missing_moments_are_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"'measured_variance' needs .*gradient_moments, found None at step 3"):
        Curriculum().on_rollout(one_rank(), module_with(), step_with(3, [T], None))
