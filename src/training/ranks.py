"""The processes that train together: who does which prompts, and sums, maxima and gathers over all of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from src.algorithm.packing import deal, divide

T = TypeVar("T")
Divide = Callable[[Sequence[int], int, Sequence[int]], list[list[int]]]
"""(costs, parts, what each part carries already) → indices of each part; `packing.divide`."""


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
        starts = range(0, len(costs), per_minibatch)
        shares = shares_of_minibatches([costs[start : start + per_minibatch] for start in starts], self.size, divide)
        mine = [share[self.rank] for share in shares]
        indices = [start + index for start, share in zip(starts, mine, strict=True) for index in share]
        return Share(indices, [len(share) for share in mine])

    def redistribute(
        self, items: Sequence[T], costs: Sequence[int], minibatches: Sequence[int], max_row_tokens: int
    ) -> tuple[list[T], list[int]]:
        """This rank's items after the items of each minibatch were shared out anew, by costs that are known by now.

        Only items that change ranks travel, pickled. All ranks call this together.

        Args:
            items: of this rank, those of the first minibatch first.
            costs: of each item: its tokens.
            minibatches: how many of the items each minibatch has.
            max_row_tokens: longest row that the items are packed into; see `packing.deal`.

        Returns:
            The items and how many of them each minibatch has. Within a minibatch they are in the order of the ranks
            that had them.
        """
        if self.size == 1:
            return list(items), list(minibatches)
        ends = list(accumulate(minibatches, initial=0))
        mine = [slice(start, stop) for start, stop in pairwise(ends)]
        by_rank = self.gather([list(costs[part]) for part in mine])
        known = [list(chain(*parts)) for parts in zip(*by_rank, strict=True)]
        sent: list[list[list[T]]] = [[] for _ in range(self.size)]
        rows = partial(deal, max_tokens=max_row_tokens)
        for number, shares in enumerate(shares_of_minibatches(known, self.size, rows)):
            first = sum(len(costs_of_rank[number]) for costs_of_rank in by_rank[: self.rank])
            places = {first + place: item for place, item in enumerate(items[mine[number]])}
            for to, share in enumerate(shares):
                sent[to].append([places[index] for index in share if index in places])
        found = [list(chain(*parts)) for parts in zip(*self._exchange(sent), strict=True)]
        return list(chain(*found)), [len(part) for part in found]

    def _exchange(self, sent: Sequence[T]) -> list[T]:
        """What each rank has for this one, given what this one has for each rank."""
        dumped = [b"" if rank == self.rank else _dump(value) for rank, value in enumerate(sent)]
        sizes = [len(data) for data in dumped]
        expected = [of_rank[self.rank] for of_rank in self.gather(sizes)]
        data = self._reachable(torch.frombuffer(bytearray().join(dumped), dtype=torch.uint8))
        received = data.new_empty(sum(expected))
        dist.all_to_all_single(received, data, expected, sizes)
        parts = enumerate(received.cpu().split(expected))
        return [sent[rank] if rank == self.rank else pickle.loads(part.numpy()) for rank, part in parts]

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        reduced = self._reachable(values.clone())
        dist.all_reduce(reduced, operation)
        return reduced.to(values.device)

    def _reachable(self, values: Tensor) -> Tensor:
        """The values where other ranks can get them: NCCL moves nothing that is in host memory."""
        return values.cuda() if dist.get_backend() == "nccl" else values


def shares_of_minibatches(minibatches: Iterable[Sequence[int]], size: int, divide: Divide) -> Iterator[list[list[int]]]:
    """For each minibatch, the indices of each rank's items; ranks carry about the same over all of them.

    Args:
        minibatches: costs of the items of each.
        size: how many ranks there are.
        divide: shares out the items of one.
    """
    loads = [0] * size
    for costs in minibatches:
        shares = divide(costs, size, loads)
        loads = [load + sum(costs[i] for i in share) for load, share in zip(loads, shares, strict=True)]
        yield shares


class _Pickler(pickle.Pickler):
    """Pickles a tensor without the storage that it is a view of, and quickly."""

    def reducer_override(self, value: Any) -> Any:
        """See `pickle.Pickler`."""
        return (torch.from_numpy, (value.cpu().numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _dump(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()
