"""Layouts of packed rows for the attention tests."""

from __future__ import annotations

import torch

from src.algorithm.packing import GroupLayout
from src.models.attention.plan import block_length

CPU = torch.device("cpu")


def layouts_of(shapes: list[tuple[int, tuple[int, ...]]], first: GroupLayout | None = None) -> tuple[GroupLayout, ...]:
    """A row of groups of (prompt length, sampled tokens of each completion), behind a first one."""
    layouts = [] if first is None else [first]
    for prompt, lengths in shapes:
        layouts.append(GroupLayout.of(sum(layout.num_tokens for layout in layouts), prompt, lengths))
    return tuple(layouts)


def in_blocks_of(
    shapes: list[tuple[int, tuple[int, ...]]], first: GroupLayout | None = None
) -> tuple[GroupLayout, ...]:
    """The same, padded for FlexAttention."""
    return in_blocks(layouts_of(shapes, first))


def in_blocks(layouts: tuple[GroupLayout, ...]) -> tuple[GroupLayout, ...]:
    """The row padded as `models.rows` pads it for FlexAttention, by a group of its own."""
    tokens = sum(layout.num_tokens for layout in layouts)
    more = block_length(tokens) - tokens
    return (*layouts, GroupLayout(tokens, (more,), (-1,))) if more else layouts


def random_layouts(generator: torch.Generator) -> tuple[GroupLayout, ...]:
    """Up to six groups; completions of one sampled token take no position."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    size, prompt = draw(1, 5), draw(1, 9)
    shapes = []
    for _ in range(draw(1, 7)):
        completions = size if draw(0, 4) else draw(1, 5)
        length = prompt + draw(0, 3) if draw(0, 4) else draw(1, 20)
        shapes.append((length, tuple(draw(1, 8) for _ in range(completions))))
    return layouts_of(shapes)


def random_trees(generator: torch.Generator) -> tuple[GroupLayout, ...]:
    """Up to four groups whose runs follow each other at most four deep; many have no input or are as long as others."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    layouts: list[GroupLayout] = []
    for _ in range(draw(1, 5)):
        sizes, parents, path = [draw(1, 9)], [-1], [0]
        for run in range(1, draw(2, 12)):
            path = path[: draw(1, min(len(path), 4) + 1)]
            parents.append(path[-1])
            sizes.append(draw(1, 4))
            path.append(run)
        sizes = [size - 1 if run and run not in parents else size for run, size in enumerate(sizes)]
        offset = layouts[-1].offset + layouts[-1].num_tokens if layouts else 0
        layouts.append(GroupLayout(offset, tuple(sizes), tuple(parents)))
    return tuple(layouts)
