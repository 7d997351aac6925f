"""How the attention of a packed row is cut into kernel calls, worked out once a row and used by every layer.

Integers only; `models.attention` picks the form that the device can run, `models.attention_tiles` computes tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from src.algorithm.packing import GroupLayout
from src.models.attention_mask import block_mask, dense_mask

MAX_CAUSAL = 256
"""Longest run that attends to itself in one causal call; what lies before it is attended to without a mask."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One kernel call: runs of queries, each against a run of keys.

    Attributes:
        query: position in the row of the first query.
        queries: queries of a run.
        runs: runs of a causal tile, one after the other in the row; 1 where not causal.
        key: position of the first key.
        keys: keys of a run.
        causal: each run attends to itself, up to the query; otherwise all queries see all keys.
    """

    query: int
    queries: int
    runs: int
    key: int
    keys: int
    causal: bool


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of a row of groups; each form is made when it is first asked for."""

    layouts: tuple[GroupLayout, ...]
    device: torch.device

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Causal tiles, which cover each position once, then the others; see `tiles_of`."""
        return tuple(sorted((t for layout in self.layouts for t in tiles_of(layout)), key=lambda t: not t.causal))

    @cached_property
    def block_mask(self) -> BlockMask:
        """For FlexAttention."""
        return block_mask(self.layouts, self.device)

    @cached_property
    def group_masks(self) -> tuple[tuple[int, int, Tensor], ...]:
        """(first position, tokens, bool [1, 1, tokens, tokens] mask) of each group, for SDPA."""
        return tuple((m.offset, m.num_tokens, dense_mask([m], self.device)) for m in self.layouts)


def plan_attention(layouts: Sequence[GroupLayout], device: torch.device) -> AttentionPlan:
    """The plan of a row whose tensors are on `device`."""
    return AttentionPlan(tuple(layouts), device)


def tiles_of(layout: GroupLayout) -> Iterator[Tile]:
    """The tiles of one group.

    The prompt attends to itself. Each completion attends to itself, equally long neighbours in one call, and all of
    them together to the prompt's keys, which are never copied.

    >>> for tile in tiles_of(GroupLayout(0, 2, (3, 3, 2))):
    ...     print(tile)
    Tile(query=0, queries=2, runs=1, key=0, keys=2, causal=True)
    Tile(query=2, queries=2, runs=2, key=2, keys=2, causal=True)
    Tile(query=6, queries=1, runs=1, key=6, keys=1, causal=True)
    Tile(query=2, queries=5, runs=1, key=0, keys=2, causal=False)
    """
    if len(layout.completion_lengths) == 1:
        yield from _causal(layout.offset, layout.num_tokens, 1)
        return
    yield from _causal(layout.offset, layout.prompt_length, 1)
    start = first = layout.offset + layout.prompt_length
    for length, same in groupby(length - 1 for length in layout.completion_lengths):
        count = len(list(same))
        if length:
            yield from _causal(start, length, count)
        start += count * length
    if start > first:
        yield Tile(first, start - first, 1, layout.offset, layout.prompt_length, causal=False)


def _causal(start: int, length: int, runs: int) -> Iterator[Tile]:
    """Tiles of equally long neighbouring runs that attend causally to themselves.

    A long run is cut into equal pieces, each causal in itself and with a tile over what lies before it: the causal
    kernel computes masked scores too, up to half of all.
    """
    pieces = -(-length // MAX_CAUSAL)
    if pieces == 1:
        yield Tile(start, length, runs, start, length, causal=True)
        return
    size = -(-length // pieces)
    for begin in range(start, start + runs * length, length):
        whole, rest = divmod(length, size)
        yield Tile(begin, size, whole, begin, size, causal=True)
        if rest:
            yield Tile(begin + whole * size, rest, 1, begin + whole * size, rest, causal=True)
        for before in range(size, length, size):
            yield Tile(begin + before, min(size, length - before), 1, begin, before, causal=False)
