"""What `rollouts.jsonl` says of a token's share in the loss is what the run's loss was made of."""

import json
from types import SimpleNamespace

import pytest
import torch

from src.algorithm.policy_loss import LossCounts
from src.callbacks.rollout_log import group_records, minibatch_counts
from src.data.rendering import RenderedPrompt
from src.protocol.dialogue import Message, ToolCall, TurnExample
from src.protocol.regions import TokenBytes, read_completion
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import ScoredCompletion, ScoredGroup
from src.rollout.engine import Completion
from src.train import train
from src.training.step import RolloutStep
from tests.callbacks.steps import group
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config

ALL_OF_ONE_MINIBATCH = (
    *SMALL,
    "reward._target_=tests.models.even_reward.EvenReward",
    "data.train.num_train=30",
    "updates.prompts_per_minibatch=4",
    "sampling.n=4",
    "sampling.max_new_tokens=64",  # completions of several lengths and all regions
    "callbacks.rollout_log.groups=4",
    *HARDLY_VALIDATED,
)


def run(folder, *overrides):
    """The lines of rollouts.jsonl, and the metrics of the one rollout step of the tiny policy."""
    train(train_config(folder, *ALL_OF_ONE_MINIBATCH, *overrides))
    records, metrics = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("rollouts.jsonl", "metrics.jsonl")
    )
    (step,) = [line for line in metrics if line["event"] == "rollout_step"]
    return records, step


# Weights of mean 1 would make the loss of Eq. 19 exactly 0 at a ratio of 1, as advantages sum to 0.
@pytest.mark.parametrize(
    "method",
    [
        ("algorithm=rest_entropy_bonus", "algorithm.loss.entropy_coef=0.1", "algorithm.weighting.normalisation=none"),
        ("algorithm=rest_importance", "algorithm.loss.importance_cap=0.5", "algorithm.weighting.normalisation=none"),
        ("algorithm=rest", "algorithm.loss.aggregation=published", "algorithm.weighting.normalisation=none"),
        ("algorithm=sft",),
    ],
    ids=lambda method: method[0].removeprefix("algorithm="),
)
def test_loss_terms_sum_to_the_loss_of_the_step(method, tmp_path):
    records, step = run(tmp_path, *method)
    total = sum(term for record in records for term in record["loss_terms"])
    assert abs(step["train/loss"]) > 1e-4
    assert total == pytest.approx(step["train/loss"], rel=1e-3)
    for record in records:
        assert len(record["loss_terms"]) == len(record["old_logprobs"]) == len(record["tokens"])


def test_groups_of_later_minibatches_are_of_before_the_first_update(tmp_path):
    """Two minibatches of two prompts; in Eq. 19 a token's term is then -w A / (T S) with S = 2 prompts of 4 samples."""
    fast = ("optimizer.learning_rate=0.01", "optimizer.warmup_steps=0", "updates.prompts_per_minibatch=2")
    records, _ = run(tmp_path, *fast, "algorithm=rest")
    assert len(records) == 16
    for record in records:
        size = len(record["tokens"])
        expected = [-weight * record["advantage"] / (size * 8) for weight in record["weights"]]
        assert record["loss_terms"] == pytest.approx(expected, rel=1e-4)
        gaps = [abs(a - b) for a, b in zip(record["old_logprobs"], record["rollout_logprobs"], strict=True)]
        assert max(gaps) < 1e-3


def test_prompt_and_gold_calls_are_logged_once_a_group(trained_run):
    records = [json.loads(line) for line in (trained_run / "rollouts.jsonl").read_text().splitlines()]
    assert [("prompt" in record, "gold_calls" in record) for record in records] == [
        (record["completion"] == 0,) * 2 for record in records
    ]
    first = records[0]
    assert "<|im_start|>" in first["prompt"] and first["prompt"].endswith("assistant\n")
    assert all(call["name"] in first["target"] for call in first["gold_calls"])


def test_counts_of_each_minibatch_over_ranks():
    """Two ranks alike: minibatches of one and two groups, twice what one rank has."""
    one, two = group([0, 3], [2], [0.5, 1.5], [1.0]), group([0, 0, 0], [1, 2], [1.0, 1.0, 2.0], [1.0, -1.0])
    doubled = SimpleNamespace(sum=lambda own: 2 * own)
    step = RolloutStep(0, [], [one, two, one], minibatches=[1, 2])
    module = SimpleNamespace(ranks=doubled, device=torch.device("cpu"), objective=SimpleNamespace(counts=LossCounts.of))
    counts = minibatch_counts(module, step)
    assert counts == [LossCounts(2, 4, 4.0), LossCounts(6, 10, 12.0)]


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
    entropies = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, torch.nan, torch.nan])  # the second was left out of the update
    records = group_records(7, made, experience, entropies, table)
    assert records[0]["entropies"] == [0, 1, 2, 3, 4] and "entropies" not in records[1]


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
