"""How a policy lies on ranks and in which types it computes, read from `trainer` and `policy`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from transformers import PretrainedConfig

from src.models.loading.architecture import dtype_of
from src.models.loading.policy_config import PolicyConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """On how many ranks, and how the policy lies on them.

    Attributes:
        ranks: processes, with a device each.
        cuda: whether the devices are GPUs.
        sharded: FSDP2; otherwise every rank has a whole policy.
        cpu_offload: shards and optimizer in host memory.
        reshard: gathered layers are given back after their forward.
        buckets: DDP with gradient buckets beside the gradients.
    """

    ranks: int = 1
    cuda: bool = False
    sharded: bool = False
    cpu_offload: bool = False
    reshard: bool = True
    buckets: bool = False

    @property
    def share(self) -> float:
        """Of weights, gradients and moments on each rank."""
        return 1 / self.ranks if self.sharded else 1.0

    @property
    def on_host(self) -> bool:
        """Whether shards are in another memory than the forwards."""
        return self.sharded and self.cpu_offload and self.cuda

    @property
    def keys(self) -> tuple[str, ...]:
        """Config changes that make a rank's share smaller."""
        if not self.sharded:
            return ("trainer=fsdp on several devices", "policy.lora")
        offload = ("trainer.strategy.cpu_offload=true",) if self.cuda and not self.cpu_offload else ()
        return ("more trainer.devices or trainer.num_nodes", *offload, "policy.lora")


ALL_DEVICES = (-1, "-1", "auto")
"""Of `trainer.devices`: as many as a node turns out to have."""


def placement(trainer: DictConfig) -> tuple[Placement, int]:
    """How the policy lies on ranks, and the ranks of one node."""
    accelerator = str(trainer.get("accelerator", "auto"))
    cuda = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    on_node = _devices(trainer.get("devices", 1), torch.cuda.device_count() if cuda else 1)
    ranks = on_node * int(trainer.get("num_nodes", 1))
    strategy: Any = trainer.get("strategy", "auto")
    if not isinstance(strategy, Mapping):
        return Placement(ranks, cuda, buckets=ranks > 1), on_node
    from lightning.pytorch.strategies import ModelParallelStrategy  # slow to import, and few runs have a strategy

    if issubclass(get_class(strategy["_target_"]), ModelParallelStrategy):
        offload, reshard = strategy.get("cpu_offload", False), strategy.get("reshard_after_forward", True)
        return Placement(ranks, cuda, sharded=True, cpu_offload=bool(offload), reshard=bool(reshard)), on_node
    return Placement(ranks, cuda, buckets=ranks > 1 and not strategy.get("gradient_as_bucket_view", False)), on_node


def _devices(devices: Any, found: int) -> int:
    """Processes on a node, from Lightning's `devices`."""
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices in ALL_DEVICES:
        return max(1, found)
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return len(devices)


def stored_dtype(policy: PolicyConfig, architecture: PretrainedConfig) -> torch.dtype:
    """Of the weights as they are stored."""
    if policy.dtype == "auto":
        return dtype_of(architecture)
    return cast(torch.dtype, getattr(torch, policy.dtype))
