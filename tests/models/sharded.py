"""Shards of a model as the first of two ranks has them, and what collective calls gather; no second rank is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def first_of_two_ranks() -> Iterator[DeviceMesh]:
    """Collective calls return at once; of what they gather only this rank's half is right."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Replace every parameter by this rank's rows of it; tied ones come apart."""
    for owner in model.modules():
        for name, weight in list(owner.named_parameters(recurse=False)):
            rows = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
            owner.register_parameter(name, nn.Parameter(rows))


class GatheredBytes(TorchDispatchMode):
    """Counts the bytes of what is gathered from all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func is torch.ops._c10d_functional.all_gather_into_tensor.default:
            self.bytes += out.nbytes
        return out
