"""How a policy lies on ranks and in which types it computes, read from `trainer` and `policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from transformers import PretrainedConfig

from src.models.memory import ModelTraits, Placement
from src.models.policy_config import PolicyConfig


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
    if devices in (-1, "-1", "auto"):
        return max(1, found)
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return len(devices)


def stored_dtype(policy: PolicyConfig, architecture: PretrainedConfig, precision: str) -> torch.dtype:
    """Of the weights as they are stored."""
    if precision.endswith("-true") and precision != "32-true":
        return torch.bfloat16 if precision.startswith("bf16") else torch.float16
    if policy.dtype == "auto":
        return cast(torch.dtype, architecture.dtype or torch.float32)
    return cast(torch.dtype, getattr(torch, policy.dtype))


def model_traits(policy: PolicyConfig, stored: torch.dtype, place: Placement, precision: str) -> ModelTraits:
    """Types and switches of the policy's forwards; sharded weights are gathered in the type that they compute in."""
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return ModelTraits(
        weights=mixed if mixed is not None and place.sharded else stored,
        autocast=mixed,
        attention=policy.attention,
        checkpointing=policy.gradient_checkpointing,
        lora=policy.lora,
        trust_remote_code=policy.trust_remote_code,
        cuda=place.cuda,
    )
