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
    for logprob, probe, expected in ((-1.00005, Probe(), True), (-1.0005, Probe(mean=0.1, largest=0.1), False)):
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
    sampler, _ = build(parts, engine, probe=Probe(tokens=2))
    sync(sampler, 0, parts, logprob=-1.0)
    assert sampler.probed == {"engine/gap": 0.0, "engine/mean_gap": 0.0} and engine.events == ["weights 0"]
    with pytest.raises(EngineMismatchError, match=r"rollout step 1: .* 5\.00e-01 nats on average .* up to 5\.00e-01"):
        sync(sampler, 1, parts, logprob=-1.5)
    assert engine.events == ["weights 0", "weights 1", "weights 1"]
    trusted, _ = build(parts, FakeEngine([5], copies_weights=True))
    sync(trusted, 0, parts, logprob=-9.0)
    assert trusted.probed == {}


class LateEngine(FakeEngine):
    """Takes new weights at the second hand-over only; `logprobs` are those of each hand-over's completions."""

    def __init__(self, logprobs):
        super().__init__([5, 6, 7, 8], copies_weights=True)
        self.logprobs = logprobs

    def update_weights(self, named_tensors, version):
        super().update_weights(named_tensors, version)
        self.logprob = self.logprobs.pop(0)


def test_weights_that_did_not_arrive_are_handed_over_once_more(parts, caplog):
    """Of stale weights all tokens are off by 0.4 nats; 0.1 on average are accepted in half precision."""
    engine = LateEngine([-1.4, -1.0])
    sampler, told = build(parts, engine, probe=Probe(tokens=4, dtype=torch.bfloat16))
    sync(sampler, 3, parts)
    assert engine.events == ["weights 3", "weights 3"] and sampler.probed["engine/gap"] == 0.0
    found = "log-probabilities differ by 4.00e-01 nats on average and by up to 4.00e-01"
    assert told.events == [("engine_fault", {"error": found})]
    assert caplog.messages == [f"Rollout step 3: the engine's {found}: it gets the weights again."]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stale_weights_stop_the_run(parts, dtype):
    engine = LateEngine([-1.2, -1.2])
    sampler, _ = build(parts, engine, probe=Probe(tokens=4, dtype=dtype))
    with pytest.raises(EngineMismatchError, match=r"rollout step 3: .* also after a second hand-over"):
        sync(sampler, 3, parts)
    assert not engine.logprobs


def test_near_ties_are_told_of_once(parts, caplog):
    """One of four tokens is off by 0.36 nats: 0.09 on average."""
    engine = FakeEngine([5, 6, 7, 8], copies_weights=True)
    sampler, told = build(parts, engine, probe=Probe(tokens=4, dtype=torch.bfloat16))
    found = torch.tensor([-1.0, -1.36, -1.0, -1.0])
    for step in (1, 2):
        sampler.sync(FakePolicy([0.0]), step, lambda: parts[2][0], lambda group: found)
    assert sampler.probed == pytest.approx({"engine/gap": 0.36, "engine/mean_gap": 0.09})
    assert engine.events == ["weights 1", "weights 2"] and not told.events
    (message,) = caplog.messages
    assert message.startswith(
        "Rollout step 1: the engine's log-probability of a token differs from the trainer's by 0.36"
    )


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
