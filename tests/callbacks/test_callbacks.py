"""Callbacks on steps made by hand."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.region_weights import RegionFactors, RegionWeighting
from src.callbacks.curriculum import Curriculum
from src.callbacks.health import Health
from src.callbacks.region_entropy import region_metrics, region_sums
from src.callbacks.rollout_log import group_records
from src.data.rendering import RenderedPrompt
from src.protocol.dialogue import Message, ToolCall, TurnExample
from src.protocol.regions import TokenBytes, read_completion
from src.protocol.types import Region
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import ScoredCompletion, ScoredGroup
from src.rollout.engine import Completion
from src.training.step import RolloutStep

F, N, P, T = Region.FORMAT, Region.TOOL_NAME, Region.TOOL_PARAMETERS, Region.REASONING


def group(regions: list[int], lengths: list[int], weights: list[float], advantages: list[float]) -> PromptGroup:
    n = len(regions)
    return PromptGroup(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.zeros(n, dtype=torch.int64),
        lengths=torch.tensor(lengths),
        rollout_logprobs=torch.zeros(n),
        regions=torch.tensor(regions),
        rewards=torch.zeros(len(lengths)),
        advantages=torch.tensor(advantages),
        weights=torch.tensor(weights),
    )


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


def test_entropy_is_not_scaled_by_weights():
    entropies = torch.tensor([0.5, 0.1])
    light, heavy = (group([T, F], [2], [w, 1.0], [1.0]) for w in (0.001, 8.0))
    a, b = (region_metrics(region_sums(g, entropies)) for g in (light, heavy))
    assert a["entropy/reasoning"] == b["entropy/reasoning"] == 0.5
    assert a["gradient_share/reasoning"] < 0.01 < 0.8 < b["gradient_share/reasoning"]


def one_rank():
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    return SimpleNamespace(strategy=strategy, callbacks=[], lightning_module=None)


def module_with(weighting: RegionWeighting, progress: float = 0.0):
    return SimpleNamespace(
        algorithm=SimpleNamespace(weighting=weighting),
        progress=progress,
        device=torch.device("cpu"),
        region_factors=None,
    )


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
    Curriculum().on_rollout(one_rank(), module, made)
    logged = {key.removeprefix("curriculum/"): value for key, value in made.metrics.items()}
    assert logged == pytest.approx({**expected, "response": expected["reasoning"], "other": expected["format"]})
    assert module.region_factors.format == pytest.approx(expected["format"])


def test_curriculum_measures_equation_9_once_and_keeps_it():
    """H = 1 nat (reasoning), 0.25 (format), 0.125 (name): 1/H is 1, 4, 8, scaled by 1.2 / 8: 0.15, 0.6, 1.2."""
    weighting = RegionWeighting(RegionFactors(tool_name=1.2), initialiser="inverse_entropy")
    made = group([T, F, N], [3], [1.0] * 3, [1.0])
    callback, module = Curriculum(), module_with(weighting)
    callback.on_rollout(one_rank(), module, RolloutStep(0, [], [made], [torch.tensor([1.0, 0.25, 0.125])]))
    first = module.region_factors
    assert (first.reasoning, first.format, first.tool_name) == pytest.approx((0.15, 0.6, 1.2))
    resumed = Curriculum()
    resumed.load_state_dict(callback.state_dict())
    for later in (callback, resumed):
        later.on_rollout(one_rank(), module, RolloutStep(1, [], [made], [torch.tensor([0.1, 0.2, 0.9])]))
        assert module.region_factors == first


def test_health_warns_once_and_counts(caplog):
    metrics = {"group/zero_variance": 0.95, "train/sampler_gap": 1e-6, "response/truncated": 0.1}
    callback = Health()
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            step = RolloutStep(index, [], [], [], dict(metrics))
            callback.on_rollout_step_end(one_rank(), module_with(TABLE_F1), step)
    assert [record.message.split(":")[1].strip() for record in caplog.records] == [
        "group/zero_variance is 0.95, over 0.9"
    ]
    assert step.metrics["health/zero_variance_steps"] == 3 and step.metrics["health/truncated_steps"] == 0


def test_rollout_records_align_tokens_regions_and_weights():
    table = TokenBytes((b"<think>", b" hm ", b"</think>", b"\n<response> ok </response>", b"<eos>", b"\xc3"))
    target = Message("assistant", "ok", "hm", ())
    example = TurnExample((), (Message("user", "?"),), target, "doc", "3")
    scored = []
    for ids in ([0, 1, 2, 3, 4], [0, 5]):
        tokens = torch.tensor(ids)
        decoded = read_completion(tokens, table, (4,))
        reward = ToolCallReward()(decoded.text, decoded.parsed, target, rollout_step=0)
        scored.append(ScoredCompletion(Completion(tokens, torch.zeros(len(ids)), "stop", 0), decoded, reward))
    made = ScoredGroup(RenderedPrompt(torch.tensor([1]), "", example), tuple(scored))
    experience = made.to_experience("grpo", 0.0)
    records = group_records(7, made, experience, torch.arange(7.0), table)
    assert [len(record["tokens"]) for record in records] == [5, 2]
    assert records[0]["tokens"][1] == " hm " and records[0]["regions"][1] == "reasoning"
    assert records[0]["entropies"] == [0, 1, 2, 3, 4] and records[1]["entropies"] == [5, 6]
    assert records[0]["advantage"] == 1 and records[1]["advantage"] == -1
    assert records[1]["tokens"][1] == "\ufffd"
    assert records[0]["example"] == "doc/3" and records[0]["rollout_step"] == 7
    json.dumps(records)


def test_calls_in_records_are_the_target():
    target = Message("assistant", "", "t", (ToolCall("go", {"x": 1}),))
    table = TokenBytes((b"hello", b"<eos>"))
    example = TurnExample((), (Message("user", "?"),), target, "doc", "0")
    tokens = torch.tensor([0, 1])
    decoded = read_completion(tokens, table, (1,))
    item = ScoredCompletion(
        Completion(tokens, torch.zeros(2), "stop", 0),
        decoded,
        ToolCallReward()(decoded.text, decoded.parsed, target, rollout_step=0),
    )
    made = ScoredGroup(RenderedPrompt(torch.tensor([1]), "", example), (item,))
    (record,) = group_records(0, made, made.to_experience("grpo", 0.0), torch.zeros(2), table)
    assert record["target"] == '<think> t </think>\n<tool_call>\n{"name": "go", "parameters": {"x": 1}}\n</tool_call>'
    assert record["exact_match"] == 0 and record["format"] == 0
