"""Supervised loss against transformers' own, and the cached warm start."""

import pytest
import torch
from torch.nn import functional as F

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.source import SyntheticSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.training.optimizers import OptimizerSettings, build_optimizer, learning_rate_share
from src.training.supervised import SupervisedDataset, supervised_loss
from src.training.warm_start import WarmStart, warm_start

CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture
def loaded(random_policy):
    return load_policy(PolicyConfig(path=random_policy, dtype="float32"))


@pytest.mark.parametrize("prompt_weight", [0.0, 0.2])
def test_supervised_loss_is_the_weighted_cross_entropy(loaded, prompt_weight):
    """Packed, against one forward a sequence: sum of w * nll / sum of w, prompts' first tokens never scored."""
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    dataset = SupervisedDataset(SyntheticSource(6, 1, seed=5).load("train"), renderer)
    batch = [dataset[index] for index in range(6)]
    total, weight = torch.zeros(()), 0.0
    with torch.no_grad():
        for prompt, target in batch:
            ids = torch.cat([prompt, target])
            logits = loaded.policy.model(input_ids=ids[None]).logits[0]
            losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
            weights = torch.ones(len(ids) - 1)
            weights[: len(prompt) - 1] = prompt_weight
            total, weight = total + (losses * weights).sum(), weight + float(weights.sum())
        found = supervised_loss(loaded.policy, batch, prompt_weight)
    torch.testing.assert_close(found, total / weight, rtol=1e-5, atol=1e-5)


def test_too_long_examples_are_dropped_and_counted(loaded):
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    examples = SyntheticSource(20, 1, seed=5).load("train")
    sizes = sorted(len(renderer.render(e).prompt_ids) + len(renderer.render_target(e)) for e in examples)
    dataset = SupervisedDataset(examples, renderer, max_tokens=sizes[12])
    assert len(dataset) == sum(size <= sizes[12] for size in sizes) and dataset.dropped == 20 - len(dataset)
    with pytest.raises(ValueError, match="all 20 examples are longer than 3 tokens"):
        SupervisedDataset(examples, renderer, max_tokens=3)


def test_warm_start_learns_and_is_cached(random_policy, tmp_path, monkeypatch):
    settings = WarmStart(SyntheticSource(64, 1, seed=5), OptimizerSettings(3e-3), epochs=2, batch_size=8)

    def start(chosen=settings):
        loaded = load_policy(PolicyConfig(path=random_policy, dtype="float32"))
        renderer = PromptRenderer(loaded.tokenizer, "compact")
        dataset = SupervisedDataset(settings.source.load("train"), renderer)
        batch = [dataset[index] for index in range(16)]
        before = supervised_loss(loaded.policy, batch).item()
        path = warm_start(loaded, renderer, chosen, tmp_path, CPU)
        return path, before, supervised_loss(loaded.policy, batch).item(), loaded.policy.model.state_dict()

    path, before, after, trained = start()
    assert after < 0.7 * before
    monkeypatch.setattr("src.training.warm_start.L.Trainer", lambda **_: pytest.fail("trained again"))
    again, _, cached_loss, cached = start()
    assert again == path and cached_loss == after
    assert all(torch.equal(cached[name], trained[name]) for name in trained)
    monkeypatch.undo()
    other, *_ = start(WarmStart(settings.source, OptimizerSettings(1e-3), epochs=2, batch_size=8))
    assert other != path


def test_schedule_by_hand():
    """Warm-up of 2, then cosine from 1 to 0.1 over 4: 1, 0.1 + 0.9 (1 + cos(pi k / 4)) / 2."""
    settings = OptimizerSettings(1.0, "cosine", warmup_steps=2, final_share=0.1)
    expected = [0.5, 1.0, 1.0, 0.8682, 0.55, 0.2318, 0.1, 0.1]
    assert [learning_rate_share(step, 6, settings) for step in range(8)] == pytest.approx(expected, abs=1e-4)
    constant = OptimizerSettings(1.0, warmup_steps=4)
    assert [learning_rate_share(step, 6, constant) for step in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]


def test_only_matrices_decay_and_something_must_train():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    optimizer, _ = build_optimizer(module.named_parameters(), OptimizerSettings(1e-3, weight_decay=0.1), 10)
    decays = {
        parameter.ndim: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}
    with pytest.raises(ValueError, match="at least one parameter to train"):
        build_optimizer(module.requires_grad_(False).named_parameters(), OptimizerSettings(1e-3), 10)
    with pytest.raises(ValueError, match=r"optimizer.schedule: expected 'constant' or 'cosine', found 'linear'"):
        OptimizerSettings(1e-3, "linear")  # type: ignore[arg-type]
