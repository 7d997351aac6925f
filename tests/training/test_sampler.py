"""An engine that follows the weights: versions, the probe, one retry, greedy validation; with a scripted engine."""

from dataclasses import replace

import pytest
import torch

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.source import SyntheticSource
from src.models.loading.loading import PolicyConfig, load_tokenizer
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.rollout.probe import EngineMismatchError
from src.rollout.splitting import SplittingEngine
from src.training import sampler as module
from src.training.ranks import Ranks
from src.training.sampler import Probe, Sampler
from tests.conftest import ROOT
from tests.training.fakes import FakeEngine, FakePolicy, Told

TRUSTED = Probe(tokens=0)
PARAMS = SamplingParams(n=3, temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=8)


@pytest.fixture(scope="module")
def parts():
    tokenizer = load_tokenizer(PolicyConfig(path=ROOT / "src/models/tiny"))
    renderer = PromptRenderer(tokenizer, "compact")
    prompts = [renderer.render(example) for example in SyntheticSource(2, 1, seed=5).load("train")]
    return TokenBytes.from_tokenizer(tokenizer), (int(tokenizer.eos_token_id),), prompts


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr(module, "merged_named_tensors", lambda *_: iter(()))


def build(parts, engine, *, probe=TRUSTED):
    table, stops, _ = parts
    told = Told()
    collector = Collector(engine, ToolCallReward(), table, stops)
    return Sampler(engine, collector, PARAMS, 10, 1, Ranks(), probe, told), told


def sync(sampler, step, parts, logprob=-1.0):
    policy = FakePolicy([0.0])
    sampler.sync(policy, step, lambda: parts[2][0], lambda group: torch.full((len(group.token_ids),), logprob))


def test_an_engine_agrees_if_it_was_compared_and_only_rounding_differs(parts):
    """In this process it was compared at the start; with weights of its own, by the probe: -1 against -1.00005."""
    half = Probe(dtype=torch.bfloat16)
    assert build(parts, FakeEngine([5, 6]), probe=Probe())[0].agrees
    assert not any(build(parts, FakeEngine([5, 6]), probe=probe)[0].agrees for probe in (TRUSTED, half))
    for logprob, probe, expected in ((-1.00005, Probe(), True), (-1.0005, Probe(tolerance=0.1), False)):
        sampler, _ = build(parts, FakeEngine([5, 6], copies_weights=True), probe=probe)
        assert not sampler.agrees  # nothing was compared yet
        sync(sampler, 0, parts, logprob)
        assert sampler.agrees == expected


def test_completions_are_of_the_weights_that_the_engine_was_given(parts):
    engine = FakeEngine([5, 6])
    sampler, _ = build(parts, engine)
    sync(sampler, 4, parts)
    assert sampler.rollout_step == 4 and sampler.progress == 0.4 and engine.events == ["weights 4"]
    groups = sampler.sample(parts[2])
    assert [len(group.completions) for group in groups] == [3, 3]
    assert {item.completion.weights_version for group in groups for item in group.completions} == {4}
    assert sampler.longest == 24


def test_validation_is_greedy(parts):
    engine = FakeEngine([5])
    sampler, _ = build(parts, engine)
    sampler.greedy(parts[2])
    assert engine.calls == [(2, replace(PARAMS, n=1, temperature=0.0, top_p=1.0, top_k=0))]


def test_an_engine_with_weights_of_its_own_is_compared_with_the_policy(parts):
    engine = FakeEngine([5, 6], logprob=-1.0, copies_weights=True)
    sampler, _ = build(parts, engine, probe=Probe(tokens=2, tolerance=0.01))
    sync(sampler, 0, parts, logprob=-1.0)
    assert sampler.probed == {"engine/gap": 0.0}
    with pytest.raises(EngineMismatchError, match=r"rollout step 1: .* by up to 5\.00e-01"):
        sync(sampler, 1, parts, logprob=-1.5)
    trusted, _ = build(parts, FakeEngine([5], copies_weights=True))
    sync(trusted, 0, parts, logprob=-9.0)
    assert trusted.probed == {}


def test_an_engine_that_fails_once_gets_the_weights_again(parts):
    inner = FakeEngine([5, 6], failures=1)
    sampler, told = build(parts, SplittingEngine(inner))
    sync(sampler, 2, parts)
    groups = sampler.sample(parts[2])
    assert len(groups) == 2 and inner.events == ["weights 2", "weights 2"]
    assert told.events == [("engine_fault", {"error": "RuntimeError: connection lost"})]
    inner.failures = 2
    with pytest.raises(RuntimeError, match="connection lost"):
        sampler.sample(parts[2])


def test_what_is_wrong_in_scoring_is_not_tried_again(parts, monkeypatch):
    inner = FakeEngine([5, 6])
    sampler, told = build(parts, SplittingEngine(inner))
    monkeypatch.setattr(ToolCallReward, "__call__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.sample(parts[2])
    assert len(inner.calls) == 1 and not told.events
