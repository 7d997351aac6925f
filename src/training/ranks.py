"""The processes that train together: who does which prompts, and sums, maxima and gathers over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch.distributed as dist
from torch import Tensor

from src.algorithm.packing import divide

T = TypeVar("T")


class Share(NamedTuple):
    """A rank's part of a batch.

    Attributes:
        indices: of its items in the batch, those of the first minibatch first.
        minibatches: how many of them each minibatch has.
    """

    indices: list[int]
    minibatches: list[int]


class Ranks:
    """This process among its peers; alone where `torch.distributed` is not running."""

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return dist.get_rank() if dist.is_initialized() else 0

    def sum(self, values: Tensor) -> Tensor:
        """The values of all ranks added up, on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """The largest of all ranks' values, element by element, on every rank."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def min(self, values: Tensor) -> Tensor:
        """The smallest of all ranks' values, element by element, on every rank."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def gather(self, value: T) -> list[T]:
        """One object of each rank, in their order, on every rank. Objects are pickled."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, costs: Sequence[int], per_minibatch: int) -> Share:
        """This rank's items of a batch.

        A minibatch holds the same items on any number of ranks; each is divided so that ranks cost the same.

        Args:
            costs: of each item, e.g. its tokens.
            per_minibatch: items of a minibatch, over all ranks.
        """
        loads = [0] * self.size
        indices: list[int] = []
        minibatches: list[int] = []
        for start in range(0, len(costs), per_minibatch):
            minibatch = costs[start : start + per_minibatch]
            shares = divide(minibatch, self.size, loads)
            loads = [load + sum(minibatch[i] for i in share) for load, share in zip(loads, shares, strict=True)]
            mine = shares[self.rank]
            indices += [start + index for index in mine]
            minibatches.append(len(mine))
        return Share(indices, minibatches)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        on_gpu = dist.get_backend() == "nccl" and not values.is_cuda  # which reduces nothing in host memory
        reduced = values.cuda() if on_gpu else values.clone()
        dist.all_reduce(reduced, operation)
        return reduced.to(values.device)
