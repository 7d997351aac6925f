"""Who sees whom in a packed row, said once: as two index tensors, as a dense mask and as FlexAttention's block mask.

Pure index arithmetic; the attention functions beside it compute with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from src.algorithm.packing import GroupLayout

BLOCK = 128
"""Side of FlexAttention's blocks, its default and the smallest that its CUDA kernels take."""

_STRIP = 16 * BLOCK  # queries whose mask exists at once while the blocks are counted

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's `mask_mod`: (batch, head, query position, key position) -> may attend."""


def token_index(layouts: Sequence[GroupLayout], device: torch.device) -> tuple[Tensor, Tensor]:
    """Group and part of each position of a row, int32 [L] each; part 0 is the prompt, i the i-th completion.

    >>> group, part = token_index([GroupLayout(0, 2, (3, 2)), GroupLayout(5, 1, (2,))], torch.device("cpu"))
    >>> group.tolist(), part.tolist()
    ([0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 0, 1])
    """
    groups: list[int] = []
    parts: list[int] = []
    sizes: list[int] = []
    for number, layout in enumerate(layouts):
        lengths = (layout.prompt_length, *(length - 1 for length in layout.completion_lengths))
        groups += [number] * len(lengths)
        parts += range(len(lengths))
        sizes += lengths
    index = torch.tensor([groups, parts, sizes], dtype=torch.int32, device=device)
    group, part = index[:2].repeat_interleave(index[2], dim=1, output_size=sum(sizes))
    return group, part


def packed_mask_mod(group: Tensor, part: Tensor) -> MaskMod:
    """A position sees earlier positions of its group that belong to the prompt or to its own part.

    Args:
        group: int32 [L], of `token_index`.
        part: int32 [L], 0 for the prompt.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_group = group[query] == group[key]
        return (key <= query) & same_group & ((part[key] == 0) | (part[query] == part[key]))

    return visible


def dense_mask(layouts: Sequence[GroupLayout], device: torch.device) -> Tensor:
    """The same as a bool [1, 1, L, L] mask, True = attend: the reference form.

    Example, prompt of 2 tokens, completions that occupy 2 and 1 positions:

        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 0 0 1
    """
    group, part = token_index(layouts, device)
    position = torch.arange(len(group), device=device)
    zero = position.new_zeros(())
    return packed_mask_mod(group, part)(zero, zero, position[:, None], position)[None, None]


def block_mask(layouts: Sequence[GroupLayout], device: torch.device) -> BlockMask:
    """The same for FlexAttention, over the row padded to a multiple of `BLOCK`.

    Padding is a group of its own, so no query is left without a key. Blocks are counted in strips: nothing of size
    [L, L] is built, which `create_block_mask` does.
    """
    group, part = token_index(layouts, device)
    padding = -len(group) % BLOCK
    group = torch.nn.functional.pad(group, (0, padding), value=-1)
    part = torch.nn.functional.pad(part, (0, padding))
    visible = packed_mask_mod(group, part)
    position = torch.arange(len(group), device=device)
    zero = position.new_zeros(())
    counts = torch.cat(
        [
            visible(zero, zero, queries[:, None], position).view(-1, BLOCK, len(group) // BLOCK, BLOCK).sum((1, 3))
            for queries in position.split(_STRIP)
        ]
    )  # [query blocks, key blocks], pairs that attend
    full = counts.eq(BLOCK * BLOCK)
    return BlockMask.from_kv_blocks(
        *_listed(counts.gt(0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(len(group), len(group)),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of a bool [rows, columns]: how many are set in each row, and the columns with the set ones first."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
