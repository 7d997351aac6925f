"""Optimizer and learning-rate schedule of every module."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from src.errors import ConfigError, check_fields


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with a warm-up and a constant or cosine schedule.

    Attributes:
        learning_rate: after the warm-up.
        schedule: `constant`, or `cosine` down to `final_share` of the learning rate at the last step.
        warmup_steps: optimizer steps from 0 up to the learning rate, linearly.
        final_share: where `cosine` ends.
        weight_decay: of matrices; vectors (norms, biases) have none.
        betas: of AdamW.
        eps: of AdamW.
    """

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_share: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        rules = (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("final_share", 0 <= self.final_share <= 1, "in [0, 1]"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
        )
        check_fields("optimizer", self, rules)


def learning_rate_share(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Share of the learning rate at optimizer step `step` (from 0) of `total_steps`.

    >>> settings = OptimizerSettings(1e-3, "cosine", warmup_steps=2)
    >>> [round(learning_rate_share(step, 6, settings), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return settings.final_share + (1 - settings.final_share) * cosine


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, total_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over the parameters that require gradients, and its schedule by optimizer step.

    On CUDA and for shards it is one fused kernel; PyTorch's default would go through shards in a loop. Whole tensors on
    a CPU have that loop.

    Raises:
        ValueError: nothing to train.
    """
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError("policy: expected at least one parameter to train, found none.")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=_fused(trained),
    )
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_share(step, total_steps, settings))


def _fused(parameters: Iterable[Tensor]) -> bool | None:
    """AdamW's `fused`; None: PyTorch's default."""
    return all(parameter.is_cuda or isinstance(parameter, DTensor) for parameter in parameters) or None


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state with the kernel of this device, whichever one its run had."""
    own = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    groups = [given | kept for given, kept in zip(state["param_groups"], own, strict=False)]
    return {**state, "param_groups": groups}
