"""The warm start: its loss against transformers' own, its result cached."""

import pytest
import torch
from torch.nn import functional as F

from src.algorithm.packing import pack
from src.algorithm.policy_loss import LossCounts
from src.algorithm.region_weights import RegionWeighting
from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.source import SyntheticSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.training.objective import Imitation
from src.training.optimizers import OptimizerSettings
from src.training.settings import SupervisedSettings
from src.training.warm_start import NoEngine, WarmStart, warm_start, within

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture
def loaded(random_policy):
    return load_policy(PolicyConfig(path=random_policy, dtype="float32"))


def groups_of(loaded, renderer, prompts, prompt_weight=0.0):
    """The prompts' groups as a warm start trains on them, and the objective."""
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    collector = Collector(NoEngine(), ToolCallReward(), table, loaded.stop_token_ids)
    objective = Imitation(SupervisedSettings("sft", RegionWeighting()), renderer, prompt_weight)
    targets = [renderer.render_target(prompt.example) for prompt in prompts]
    return [objective.experience(group) for group in collector.demonstrate(prompts, targets, 0, 0.0)], objective


def loss_of(loaded, renderer, prompts, prompt_weight=0.0):
    groups, objective = groups_of(loaded, renderer, prompts, prompt_weight)
    loss = objective.row_loss(groups, LossCounts.of(groups), first=True)
    with torch.no_grad():
        scores = loaded.policy(pack(groups))
    return float(loss(scores.logprobs, scores.entropies, slice(None)))


@pytest.mark.parametrize("prompt_weight", [0.0, 0.2])
def test_the_loss_is_the_weighted_cross_entropy(loaded, prompt_weight):
    """Packed, against one forward a sequence: sum of w * nll / sum of w, prompts' first tokens never scored."""
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    prompts = [renderer.render(example) for example in SyntheticSource(6, 1, seed=5).load("train")]
    total, weight = torch.zeros(()), 0.0
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.cat([prompt.prompt_ids, renderer.render_target(prompt.example)])
            logits = loaded.policy.model(input_ids=ids[None]).logits[0]
            losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
            weights = torch.ones(len(ids) - 1)
            weights[: len(prompt.prompt_ids) - 1] = prompt_weight
            total, weight = total + (losses * weights).sum(), weight + float(weights.sum())
    assert loss_of(loaded, renderer, prompts, prompt_weight) == pytest.approx(float(total / weight), rel=1e-5)


def test_too_long_examples_are_left_out(loaded):
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    examples = SyntheticSource(20, 1, seed=5).load("train")
    sizes = sorted(len(renderer.render(e).prompt_ids) + len(renderer.render_target(e)) for e in examples)
    kept = within(examples, renderer, max_tokens=sizes[12])
    assert len(kept) == sum(size <= sizes[12] for size in sizes)
    with pytest.raises(ValueError, match="all 20 examples are longer than 3 tokens"):
        within(examples, renderer, max_tokens=3)


def test_it_learns_and_is_cached(random_policy, tmp_path, monkeypatch):
    settings = WarmStart(SyntheticSource(64, 1, seed=5), OptimizerSettings(3e-3), epochs=2, batch_size=8)

    def start(chosen=settings):
        loaded = load_policy(PolicyConfig(path=random_policy, dtype="float32"))
        renderer = PromptRenderer(loaded.tokenizer, "compact")
        prompts = within(settings.source.load("train")[:16], renderer, 10_000)
        before = loss_of(loaded, renderer, prompts)
        path = warm_start(loaded, renderer, chosen, tmp_path, CPU)
        return path, before, loss_of(loaded, renderer, prompts), loaded.policy.model.state_dict()

    path, before, after, trained = start()
    assert after < 0.7 * before
    monkeypatch.setattr("src.training.warm_start.L.Trainer", lambda **_: pytest.fail("trained again"))
    again, _, cached_loss, cached = start()
    assert again == path and cached_loss == after
    assert all(torch.equal(cached[name], trained[name]) for name in trained)
    monkeypatch.undo()
    other, *_ = start(WarmStart(settings.source, OptimizerSettings(1e-3), epochs=2, batch_size=8))
    assert other != path
