"""The policies that come with the project: small, made for copying, and with bad habits to lose."""

import json
from dataclasses import replace

import pytest

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.source import SyntheticSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.formats.rest import call_line
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.wings.tiny.make import FOLDERS, build_tokenizer


@pytest.fixture(scope="module")
def loaded():
    return load_policy(PolicyConfig(path=FOLDERS["brief"], dtype="float32"))


@pytest.fixture(scope="module")
def long():
    return load_policy(PolicyConfig(path=FOLDERS["long"], dtype="float32"))


@pytest.mark.parametrize("folder", [FOLDERS["brief"], FOLDERS["long"]], ids=["brief", "long"])
def test_it_is_small(folder):
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"


def test_both_have_one_tokenizer():
    """So that token counts compare, and a run of one can go on from the other."""
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (FOLDERS["long"] / name).read_bytes() == (FOLDERS["brief"] / name).read_bytes()


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
    groups = _answers(loaded, "brief", 120, SamplingParams(temperature=0.0, max_new_tokens=112))
    exact = [group.completions[0].reward.parts.exact_match for group in groups]
    assert 0.35 <= sum(exact) / len(exact) <= 0.60
    assert _habits_that_show(groups) == {"first only", "promised", "call anyway"}
    assert all(group.completions[0].completion.finish_reason == "stop" for group in groups)


@pytest.mark.slow
def test_the_long_one_knows_the_task_and_thinks_at_length(long):
    """Sampled as in training, on 80 held-out requests: fields are right, thoughts are four times the calls at least."""
    groups = _answers(long, "long", 80, SamplingParams(temperature=1.0, max_new_tokens=384))
    scored = [group.completions[0] for group in groups]
    assert sum(c.completion.finish_reason == "stop" for c in scored) >= 0.97 * len(scored)
    assert sum(c.decoded.parsed.calls is not None or c.decoded.parsed.response is not None for c in scored) >= 76
    exact = [c.reward.parts.exact_match for c in scored]
    assert 0.2 <= sum(exact) / len(exact) <= 0.65
    assert _habits_that_show(groups) == {"first only", "promised", "call anyway"}
    calling = [c for c in scored if c.decoded.parsed.calls]
    thoughts = sum(int((c.decoded.regions == Region.REASONING).sum()) for c in calling)
    lines = ["\n".join(map(call_line, c.decoded.parsed.calls)) for c in calling]
    calls = sum(len(long.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in lines)
    assert thoughts >= 4 * calls


def _answers(loaded, reasoning, count, params):
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    examples = SyntheticSource(1, count, seed=1, reasoning=reasoning).load("val")
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    collector = Collector(NativeEngine(loaded.policy.model), ToolCallReward(), table, loaded.stop_token_ids)
    params = replace(params, stop_token_ids=loaded.stop_token_ids)
    return collector.collect([renderer.render(e) for e in examples], params, seed=0, rollout_step=0, progress=0.0)


def _habits_that_show(groups):
    habits = set()
    for group in groups:
        wanted, found = group.prompt.example.target.calls, group.completions[0].decoded.parsed.calls or ()
        if len(wanted) > 1 and found == wanted[:1]:
            habits.add("first only")
        if len(wanted) == 1 and not found:
            habits.add("promised")
        if group.prompt.example.tags == ("refusal",) and found:
            habits.add("call anyway")
    return habits
