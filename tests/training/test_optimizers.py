"""AdamW's groups and the learning-rate schedule, by hand."""

import pytest
import torch

from src.training.optimizers import OptimizerSettings, build_optimizer, learning_rate_share


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


def test_a_step_by_hand(device):
    """AdamW's first step moves each weight by the learning rate against its gradient, beside the decay of matrices."""
    module = torch.nn.Linear(2, 1).to(device)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, -4.0]]))
        module.bias.fill_(1.0)
    settings = OptimizerSettings(0.1, weight_decay=0.5, eps=1e-12)
    optimizer, schedule = build_optimizer(module.named_parameters(), settings, 10)
    module(torch.tensor([3.0, -1.0], device=device)).backward()
    optimizer.step()
    schedule.step()
    # 2 (1 - 0.05) - 0.1 and -4 (1 - 0.05) + 0.1; the bias does not decay
    assert module.weight.tolist() == [pytest.approx([1.8, -3.7], abs=1e-6)]
    assert module.bias.tolist() == pytest.approx([0.9], abs=1e-6)
