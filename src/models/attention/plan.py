"""Who sees whom in a packed row, in the form that each kernel takes; worked out once a row and used by every layer.

The same pairs of queries and keys as tiles, as FlexAttention's block mask and as a dense mask. Index arithmetic only:
`attention.packed` picks the form that the device can run, `attention.tiles` computes tiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from src.algorithm.packing import GroupLayout

PIECE = 256
"""Size of a piece of a cut run: as large as its masked half allows, since the kernel takes 192 queries and more in
blocks of 64, fewer in blocks of 32, and is fastest where the keys of a block are a multiple of 16."""

_ALIGNED = 16

BLOCK = 128
"""Side of FlexAttention's blocks, its default and the smallest that its CUDA kernels take."""

_STRIP = 16 * BLOCK  # queries whose mask exists at once while the blocks are counted

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's `mask_mod`: (batch, head, query position, key position) -> may attend."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One kernel call: runs of queries, each against a run of keys, at positions of the row.

    Attributes:
        query: first query of the first run.
        queries: queries of a run.
        key: first key of the first run.
        keys: keys of a run.
        causal: the i-th query of a run sees its first i keys; otherwise all queries see all keys.
        runs: how many.
        query_step: from a run's first query to the next run's; 0 where runs share their queries.
        key_step: likewise for keys.
    """

    query: int
    queries: int
    key: int
    keys: int
    causal: bool = False
    runs: int = 1
    query_step: int = 0
    key_step: int = 0


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of a row of groups; each form is made when it is first asked for.

    Attributes:
        layouts: of the groups.
        device: of the row.
        within: what a layer's window lets through, of positions in a token's own sequence; None: everything before it.
            Tiles know no window.
    """

    layouts: tuple[GroupLayout, ...]
    device: torch.device
    within: MaskMod | None = None

    @property
    def tokens(self) -> int:
        """L, positions of the row."""
        return sum(layout.num_tokens for layout in self.layouts)

    @cached_property
    def longest(self) -> int:
        """Inputs of the longest sequence."""
        return max(d + s for layout in self.layouts for d, s in zip(layout.depths, layout.sizes, strict=True))

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """For the CPU kernel: causal tiles, which cover each position once as query and as key, then the others."""
        return tuple(sorted((t for layout in self.layouts for t in group_tiles(layout)), key=lambda t: not t.causal))

    @cached_property
    def block_mask(self) -> BlockMask:
        """For FlexAttention."""
        return block_mask(self.layouts, self.device, self.within)

    @cached_property
    def group_masks(self) -> tuple[tuple[int, int, Tensor], ...]:
        """(first position, tokens, bool [1, 1, tokens, tokens] mask) of each group, for SDPA."""
        return tuple((m.offset, m.num_tokens, dense_mask([m], self.device, self.within)) for m in self.layouts)


def group_tiles(layout: GroupLayout) -> Iterator[Tile]:
    """The tiles of one group, causal ones first.

    Each run attends to itself, equally long neighbours that follow the same run in one call. All that follows a run
    attends to its keys together; they are never copied. A run that one alone follows is one with it.

    >>> for tile in group_tiles(GroupLayout.of(0, 2, (3, 3, 2))):
    ...     print(tile)
    Tile(query=0, queries=2, key=0, keys=2, causal=True, runs=1, query_step=0, key_step=0)
    Tile(query=2, queries=2, key=2, keys=2, causal=True, runs=2, query_step=2, key_step=2)
    Tile(query=6, queries=1, key=6, keys=1, causal=True, runs=1, query_step=0, key_step=0)
    Tile(query=2, queries=5, key=0, keys=2, causal=False, runs=1, query_step=0, key_step=0)
    """
    followers = Counter(layout.parents)
    runs: list[tuple[int, int, int, int]] = []  # first position, inputs, end of what follows, run that it follows
    for start, size, end, parent in zip(layout.starts, layout.sizes, layout.ends, layout.parents, strict=True):
        if parent >= 0 and followers[parent] == 1:  # the run before, for depth comes first
            before = runs.pop()
            runs.append((before[0], before[1] + size, end, before[3]))
        else:
            runs.append((start, size, end, parent))
    for (size, _), same in groupby(runs, key=lambda run: (run[1], run[3])):
        first, *others = same
        if size:
            yield _causal(first[0], size, 1 + len(others))
    for start, size, end, _ in runs:
        if end > start + size:
            yield Tile(start + size, end - start - size, start, size)


@lru_cache(maxsize=16)
def backward_tiles(tiles: tuple[Tile, ...], key_heads: int, threads: int, piece: int = PIECE) -> tuple[Tile, ...]:
    """The same pairs in the tiles that are fastest in the backward pass, causal ones first.

    The kernel computes masked scores too, so that long causal runs are cut into pieces: each causal in itself, and all
    of what lies before it without a mask. It gives a (run, key head) to a thread as a whole, so that tiles with few of
    them are cut in runs until the threads are busy alike. Neither would help the forward pass, which shares out blocks
    of queries, and where outputs of several tiles have to be merged.
    """
    cut = [part for tile in tiles for part in (_pieces(tile, piece) if tile.causal else (tile,))]
    shared = [part for tile in cut for part in _shared_out(tile, key_heads, threads)]
    return tuple(sorted(shared, key=lambda tile: not tile.causal))


def _causal(start: int, length: int, runs: int = 1) -> Tile:
    """Neighbouring runs that attend to themselves."""
    step = length if runs > 1 else 0
    return Tile(start, length, start, length, causal=True, runs=runs, query_step=step, key_step=step)


def _pieces(tile: Tile, size: int) -> Iterator[Tile]:
    """A causal tile in pieces of `size`, the last one shorter; whole where it has hardly more than one."""
    length = tile.queries
    if length <= size + size // 2:
        yield tile
        return
    whole, rest = divmod(length, size)
    for start in range(tile.query, tile.query + tile.runs * length, length):
        yield _causal(start, size, whole)
        if rest:
            yield _causal(start + whole * size, rest)
    for before in range(size, length, size):
        yield replace(tile, query=tile.query + before, queries=min(size, length - before), keys=before, causal=False)


def _shared_out(tile: Tile, key_heads: int, threads: int) -> Iterator[Tile]:
    """A tile over all its keys in as many runs as keep the threads busy alike, and what is left over."""
    tasks = tile.runs * key_heads
    parts = next(n for n in range(1, 8 * threads + 1) if tasks * n % threads == 0 or tasks * n >= 8 * threads)
    size = tile.keys // parts // _ALIGNED * _ALIGNED
    if tile.causal or tile.runs > 1 or parts == 1 or size == 0:
        yield tile
        return
    yield replace(tile, keys=size, runs=parts, key_step=size)
    if rest := tile.keys - parts * size:
        yield replace(tile, key=tile.key + parts * size, keys=rest)


def token_ends(layouts: Sequence[GroupLayout], device: torch.device) -> Tensor:
    """For each position of a row, or of a part of one, the position in it behind all that follow its token, int32 [L].

    >>> token_ends([GroupLayout.of(0, 2, (3, 2)), GroupLayout.of(5, 1, (2,))], torch.device("cpu")).tolist()
    [5, 5, 4, 4, 5, 7, 7]
    """
    return _by_run([end - layouts[0].offset for layout in layouts for end in layout.ends], layouts, device)


def token_positions(layouts: Sequence[GroupLayout], device: torch.device) -> Tensor:
    """Position of each token of a row in its own sequence, int32 [L].

    >>> token_positions([GroupLayout.of(0, 2, (3, 2)), GroupLayout.of(5, 1, (2,))], torch.device("cpu")).tolist()
    [0, 1, 2, 3, 2, 0, 1]
    """
    moved = [d - s for layout in layouts for d, s in zip(layout.depths, layout.starts, strict=True)]
    shifts = _by_run(moved, layouts, device)
    return shifts + torch.arange(len(shifts), dtype=torch.int32, device=device) + layouts[0].offset


def _by_run(values: Sequence[int], layouts: Sequence[GroupLayout], device: torch.device) -> Tensor:
    """A value of each run at each of its positions, int32 [L]."""
    sizes = [size for layout in layouts for size in layout.sizes]
    table = torch.tensor([values, sizes], dtype=torch.int32, device=device)
    return table[0].repeat_interleave(table[1], output_size=sum(sizes))


def packed_mask_mod(ends: Tensor, positions: Tensor | None = None, within: MaskMod | None = None) -> MaskMod:
    """A position sees those that it follows: itself, earlier ones of its run, and all of the runs before that.

    Args:
        ends: int32 [L], of `token_ends`.
        positions: int32 [L], of `token_positions`.
        within: of `AttentionPlan`, of these positions.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    if within is None or positions is None:
        return visible

    def visible_within(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(batch, head, query, key) & within(batch, head, positions[query], positions[key])

    return visible_within


def dense_mask(layouts: Sequence[GroupLayout], device: torch.device, within: MaskMod | None = None) -> Tensor:
    """The same as a bool [1, 1, L, L] mask, True = attend: the reference form.

    Example, prompt of 2 tokens, completions that occupy 2 and 1 positions:

        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 0 0 1

    Within a window of 2 tokens the last three rows are 0 1 1 0 0, 0 0 1 1 0 and 0 1 0 0 1.
    """
    ends, positions = token_ends(layouts, device), token_positions(layouts, device)
    place = torch.arange(len(ends), device=device)
    zero = place.new_zeros(())
    visible = packed_mask_mod(ends, positions, within)
    return visible(zero, zero, place[:, None], place)[None, None]


def in_blocks(device: torch.device) -> bool:
    """Whether FlexAttention computes rows on this device, so that they are padded to its blocks."""
    return device.type == "cuda"


def block_length(tokens: int) -> int:
    """Inputs of the padded row in which FlexAttention computes a row: whole blocks, and at least two of them.

    One block would have a graph of its own, and so would rows that need no padding if others were padded in the layers.

    >>> [block_length(tokens) for tokens in (1, 256, 257)]
    [256, 256, 384]
    """
    return max(2 * BLOCK, -(-tokens // BLOCK) * BLOCK)


def block_mask(layouts: Sequence[GroupLayout], device: torch.device, within: MaskMod | None = None) -> BlockMask:
    """The same for FlexAttention, of a row of `block_length`.

    Blocks are counted in strips: nothing of size [L, L] is built, which `create_block_mask` does.
    """
    ends, positions = token_ends(layouts, device), token_positions(layouts, device)
    length = len(ends)
    visible = packed_mask_mod(ends, positions, within)
    place = torch.arange(length, device=device)
    zero = place.new_zeros(())
    counts = torch.cat(
        [
            visible(zero, zero, queries[:, None], place).view(-1, BLOCK, length // BLOCK, BLOCK).sum((1, 3))
            for queries in place.split(_STRIP)
        ]
    )  # [query blocks, key blocks], pairs that attend
    full = counts.eq(BLOCK * BLOCK)
    return BlockMask.from_kv_blocks(
        *_listed(counts.gt(0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of a bool [rows, columns]: how many are set in each row, and the columns with the set ones first."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
