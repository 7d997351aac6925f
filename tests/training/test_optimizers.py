"""AdamW's groups, its kernel by device, and the learning-rate schedule, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from src.training.optimizers import OptimizerSettings, build_optimizer, learning_rate_share
from tests.models.sharded import first_of_two_ranks


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


class Kernels(TorchDispatchMode):
    """Notes the operations on plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def stepped(tensors: list[Tensor], *, state: Any = None) -> tuple[torch.optim.AdamW, list[nn.Parameter], list[str]]:
    """One step of AdamW with gradients of 0.5 w: the optimizer, its weights, the kernels that ran."""
    weights = [nn.Parameter(tensor) for tensor in tensors]
    settings = OptimizerSettings(1e-2, weight_decay=0.1)
    optimizer, _ = build_optimizer([(str(i), weight) for i, weight in enumerate(weights)], settings, 10)
    if state is not None:
        optimizer.load_state_dict(state)
    for weight in weights:
        weight.grad = weight.detach() * 0.5
    with Kernels() as kernels:
        optimizer.step()
    return optimizer, weights, kernels.seen


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((6, 3), (4, 5), (4,))]


def test_whole_tensors_on_a_cpu_have_pytorchs_default():
    optimizer, weights, kernels = stepped(start())
    assert {group["fused"] for group in optimizer.param_groups} == {None}
    assert not any("fused" in name or "foreach" in name for name in kernels)
    plain = [nn.Parameter(tensor) for tensor in start()]
    for weight in plain:
        weight.grad = weight.detach() * 0.5
    groups = [{"params": plain[:2], "weight_decay": 0.1}, {"params": plain[2:], "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2).step()
    assert all(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))


def test_on_cuda_a_group_is_one_fused_kernel():
    with FakeTensorMode():
        optimizer, (weight, *_), kernels = stepped([torch.empty(x.shape, device="cuda") for x in start()])
    assert [name for name in kernels if "adamw" in name] == ["aten._fused_adamw_.default"] * 2
    assert not any("sqrt" in name or "addcdiv" in name for name in kernels)
    assert optimizer.state[weight]["step"].is_cuda


def sharded(mesh: DeviceMesh) -> list[Tensor]:
    return [distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None) for tensor in start()]


def test_shards_are_one_fused_kernel_too():
    _, whole, _ = stepped(start())
    with first_of_two_ranks() as mesh:
        optimizer, shards, kernels = stepped(sharded(mesh))
        assert {name for name in kernels if "adamw" in name} == {"aten._fused_adamw_.default"}  # also for the shapes
        assert not any("sqrt" in name or "addcdiv" in name for name in kernels)
        for rows, weight in zip(shards, whole, strict=True):
            torch.testing.assert_close(rows.to_local(), weight[: len(weight) // 2], rtol=0, atol=1e-6)
        # a checkpoint of a version that went through shards in a loop
        loop = optimizer.state_dict()
        loop["param_groups"] = [group | {"fused": None} for group in loop["param_groups"]]
        resumed, _, kernels = stepped(sharded(mesh), state=loop)
        assert "aten._fused_adamw_.default" in kernels and resumed.state_dict()["state"][0]["step"] == 2.0


def test_a_checkpoint_of_shards_keeps_the_loop_of_whole_tensors():
    saved = stepped(start())[0].state_dict()
    saved["param_groups"] = [group | {"fused": True} for group in saved["param_groups"]]
    assert not any("fused" in name for name in stepped(start(), state=saved)[2])


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
