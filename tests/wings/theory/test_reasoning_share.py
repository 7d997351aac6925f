"""What the thoughts decide: the split of the variance by hand, and where thoughts are cut on real completions."""

import json

import pytest
import torch

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.source import SyntheticSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.train import train
from src.wings.theory.reasoning_share import ReasoningShare, reward_variance, thought_prompts
from tests.conftest import HARDLY_VALIDATED, ROOT, SMALL, train_config

TINY = ROOT / "src/models/tiny"


def test_split_by_hand():
    """Beginnings with means 3/4, 1/4, 1/2: their variance 1/16; variances 1/4, 1/4, 1/3, mean 5/18; less a quarter."""
    rewards = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    found = reward_variance(rewards)
    assert found.within == pytest.approx(5 / 18) and found.between == pytest.approx(1 / 16 - 5 / 72)


def test_parts_are_unbiased():
    """Beginnings that succeed with probability 0.2 or 0.8: Var E = 0.09, E Var = 0.16, over 4,000 draws of 2 x 3."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.where(torch.rand(4000, 2, 1, generator=generator) < 0.5, 0.2, 0.8)
    draws = (torch.rand(4000, 2, 3, generator=generator) < chances).double()
    parts = torch.tensor([reward_variance(draw) for draw in draws]).mean(dim=0)
    assert parts.tolist() == pytest.approx([0.09, 0.16], abs=0.006)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_one_of_anything_has_no_variance(shape):
    with pytest.raises(ValueError, match="expected at least 2 beginnings with 2 continuations"):
        reward_variance(torch.zeros(shape))


def test_thoughts_are_cut_before_their_closing_tag():
    loaded = load_policy(PolicyConfig(path=TINY, dtype="float32"))
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    collector = Collector(NativeEngine(loaded.policy.model), ToolCallReward(), table, loaded.stop_token_ids)
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    prompts = [renderer.render(example) for example in SyntheticSource(6, 1, seed=5).load("train")]
    sampling = SamplingParams(n=4, max_new_tokens=60, stop_token_ids=loaded.stop_token_ids)
    for group in collector.collect(prompts, sampling, 1, 0, 0.0):
        branches = thought_prompts(group, table)
        assert len(branches) == 4 and len({branch.example.id for branch in branches}) == 4
        for branch, item in zip(branches, group.completions, strict=True):
            assert item.decoded.text.startswith(branch.response_prefix + "</think>")
            assert branch.prompt_ids.tolist() == [
                *group.prompt.prompt_ids.tolist(),
                *item.completion.token_ids[: len(branch.prompt_ids) - len(group.prompt.prompt_ids)].tolist(),
            ]
        (again,) = collector.collect(branches[:1], sampling, 1, 0, 0.0)
        for item in again.completions:  # scored as the whole response that they complete
            assert item.decoded.text.startswith(branches[0].response_prefix)
            assert item.decoded.parsed.fields[0] == "think" and item.decoded.parsed.closed[0]


def test_a_run_reports_it_and_is_otherwise_the_same(tmp_path):
    """The tiny policy's thought names its calls: a good part of success is settled when it ends."""

    def steps(folder: str, *overrides: str) -> list[dict]:
        (tmp_path / folder).mkdir()
        config = train_config(
            tmp_path / folder,
            *SMALL,
            *HARDLY_VALIDATED,
            *overrides,
            "data.prompts_per_step=8",
            "callbacks.progress_bar=null",
            "callbacks.rollout_log=null",
            "sampling.n=8",
            "sampling.max_new_tokens=60",
            "data.train.num_train=50",
        )
        train(config)
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == "rollout_step"]

    (plain,), (measured,) = (
        steps("plain"),
        steps("measured", "callbacks=variance", "callbacks.reasoning_share.groups=8"),
    )
    assert measured["decided/groups"] >= 4 and measured["decided/variance"] > 0
    assert 0.4 < measured["decided/reasoning"] < 1.0  # 0.71 on 16 groups
    ours = ("time/", "decided/", "variance/", "moment/")
    assert {key: value for key, value in measured.items() if not key.startswith(ours)} == {
        key: value for key, value in plain.items() if not key.startswith(ours)
    }


@pytest.mark.parametrize("setting", ["every_n_rollout_steps", "groups", "continuations"])
def test_refuses_settings_that_measure_nothing(setting):
    with pytest.raises(ValueError, match=rf"callbacks\.reasoning_share\.{setting}: expected at least"):
        ReasoningShare(**{setting: 0})
