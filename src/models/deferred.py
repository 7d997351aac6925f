"""Models without weights: built on the meta device and filled later, so that no rank holds more than it must."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from accelerate import init_empty_weights
from torch import nn


def on_meta() -> AbstractContextManager[None]:
    """Within this context new parameters take no memory; buffers, which no checkpoint may hold, are computed."""
    return init_empty_weights(include_buffers=False)  # type: ignore[no-any-return]


@torch.no_grad()
def fill_empty(module: nn.Module, device: torch.device) -> None:
    """Give parameters on the meta device memory on `device`, uninitialised; ties stay ties. The rest moves there."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device=device)
                made.setdefault(id(parameter), nn.Parameter(empty, requires_grad=parameter.requires_grad))
                owner.register_parameter(name, made[id(parameter)])
    module.to(device)
