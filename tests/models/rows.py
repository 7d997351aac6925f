"""Layouts of packed rows for the attention tests."""

from __future__ import annotations

import torch

from src.algorithm.packing import GroupLayout

CPU = torch.device("cpu")


def layouts_of(shapes: list[tuple[int, tuple[int, ...]]]) -> tuple[GroupLayout, ...]:
    """A row of groups of (prompt length, sampled tokens of each completion)."""
    layouts, offset = [], 0
    for prompt, lengths in shapes:
        layouts.append(GroupLayout(offset, prompt, lengths))
        offset += layouts[-1].num_tokens
    return tuple(layouts)


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
