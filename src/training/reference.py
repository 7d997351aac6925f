"""The frozen start of a policy, for a KL penalty: the weights that training moves, as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


class FrozenStart(nn.Module):
    """A copy of a policy's trainable weights that can take their place for a while.

    Only what is trained is copied: adapters where there are any (no second model then), all weights otherwise. The
    copies are buffers, so they follow the device and are part of checkpoints: a resumed run keeps its reference.

    Args:
        policy: as it is now.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        for name, parameter in _trained(policy):
            self.register_buffer(_key(name), parameter.detach().clone())

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, policy: nn.Module) -> Iterator[None]:
        """Within this context the policy has its frozen weights; afterwards the trained ones, bit for bit.

        Weights are exchanged in place, one tensor at a time, so a model that shares them sees the exchange too. Run
        nothing in it that needs gradients.

        Example: `with reference.in_place_of(policy), torch.no_grad(): ref = policy(row).logprobs`.
        """
        self._exchange(policy)
        try:
            yield
        finally:
            self._exchange(policy)

    def _exchange(self, policy: nn.Module) -> None:
        for name, parameter in _trained(policy):
            frozen = cast(Tensor, getattr(self, _key(name)))
            trained = parameter.detach().clone()
            parameter.data.copy_(frozen)
            frozen.copy_(trained)


def _trained(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad)


def _key(name: str) -> str:
    """Buffers' names have no dots."""
    return name.replace(".", "/")
