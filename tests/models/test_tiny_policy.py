"""The policy that comes with the project: small, made for copying, and with bad habits to lose."""

import json

import pytest

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic import SyntheticSource
from src.models.loading import PolicyConfig, load_policy
from src.models.tiny_policy import FOLDER, build_tokenizer
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.rollout.native import NativeEngine


@pytest.fixture(scope="module")
def loaded():
    return load_policy(PolicyConfig(path=FOLDER, dtype="float32"))


def test_it_is_small():
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "qwen3"


def test_its_tokenizer_is_the_one_that_the_script_builds(loaded):
    built = build_tokenizer()
    assert built.get_vocab() == loaded.tokenizer.get_vocab()
    text = "<think> I need get_weather. </think>\n<tool_call>"
    assert built(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("value", ["Gorfeti Biver", "X5135", "March 14", "18:45", "907"])
def test_a_value_has_the_same_tokens_in_a_request_and_in_a_call(loaded, value):
    """That is what makes copying learnable: the ids of the value occur as one run in both."""

    def ids(text):
        return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    wanted = ids(value)
    for text in (
        f"Please take {value}.",
        f'{{"name": "x", "parameters": {{"y": "{value}"}}}}',
        f"<user> {value}, please. ",
    ):
        found = ids(text)
        assert any(found[i : i + len(wanted)] == wanted for i in range(len(found))), text


def test_it_knows_the_task_and_has_bad_habits(loaded):
    """Greedy, on 120 held-out requests: 35 to 60 % exact, and every habit shows."""
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    prompts = [renderer.render(example) for example in SyntheticSource(1, 120, seed=1).load("val")]
    engine = NativeEngine(loaded.policy.model)
    collector = Collector(engine, ToolCallReward(), TokenBytes.from_tokenizer(loaded.tokenizer), loaded.stop_token_ids)
    params = SamplingParams(temperature=0.0, max_new_tokens=112, stop_token_ids=loaded.stop_token_ids)
    groups = collector.collect(prompts, params, seed=0, rollout_step=0, progress=0.0)
    exact = [group.completions[0].reward.parts.exact_match for group in groups]
    assert 0.35 <= sum(exact) / len(exact) <= 0.60
    calls = [(g.prompt.example, g.completions[0].decoded.parsed.calls or ()) for g in groups]
    assert any(len(e.target.calls) > 1 and found == e.target.calls[:1] for e, found in calls)
    assert any(len(e.target.calls) == 1 and not found for e, found in calls)
    assert any(e.tags == ("refusal",) and found for e, found in calls)
    assert all(group.completions[0].completion.finish_reason == "stop" for group in groups)
