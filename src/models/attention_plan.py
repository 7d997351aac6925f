"""How the queries of a packed row are gathered into blocks, and the dense mask that says the same.

Pure index arithmetic; `models.attention` computes with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from src.algorithm.packing import GroupLayout

T = TypeVar("T")

_MAX_PADDING = 1.25  # sequences share a block while padding adds at most a quarter to its area
_MAX_MASK_ELEMENTS = 1 << 24  # groups of unequal prompts share a block while its mask stays under 16 MiB


@dataclass(frozen=True, slots=True)
class CausalBlock:
    """Sequences that attend causally within themselves. `index`: int64 [S, W] positions in the row, padded right.

    Padding needs no mask: it comes after every real query.
    """

    index: Tensor


@dataclass(frozen=True, slots=True)
class CompletionBlock:
    """Completions of B groups of G, whose queries see their prompt's keys and their own.

    Attributes:
        prompt_index: int64 [B, P] positions of the prompts, padded left.
        own_index: int64 [B*G, T] positions of the completions, padded right.
        mask: bool [1 or B*G, 1, T, P+T], True = attend; one for all where the prompts are equally long.
    """

    prompt_index: Tensor
    own_index: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Blocks that cover each position of a row of L tokens once as a query.

    Attributes:
        causal: blocks of prompts, and of whole sequences where a group has one completion.
        completions: blocks of the other groups' completions.
        order: int64 [L], the place of each position in the blocks' flattened outputs.
    """

    causal: tuple[CausalBlock, ...]
    completions: tuple[CompletionBlock, ...]
    order: Tensor


def plan_attention(layouts: Sequence[GroupLayout], device: torch.device) -> AttentionPlan:
    """Group prompts and completions of like sizes into blocks; see `AttentionPlan`.

    Example, one group of prompt length 2 with completions of 3 and 2 sampled tokens (a row of 5):

        causal       [[0, 1]]
        completions  prompt [[0, 1]], own [[2, 3], [4, 0]] (0: padding), mask rows 1110 and 1111
        order        [0, 1, 2, 3, 4]
    """
    sequences, branching = [], []
    for layout in layouts:
        alone = len(layout.completion_lengths) == 1
        sequences.append((layout.offset, layout.num_tokens if alone else layout.prompt_length))
        if not alone and max(layout.completion_lengths) > 1:
            branching.append(layout)
    queries: list[list[list[int]]] = []  # for each block, for each of its rows, the real positions
    causal = []
    for batch in _batches(sorted(sequences, key=lambda s: -s[1]), _causal_area):
        rows = [list(range(start, start + length)) for start, length in batch]
        queries.append(rows)
        causal.append(CausalBlock(_pad(rows, device)))
    completions = []
    for members in _batches(sorted(branching, key=_shape, reverse=True), _completion_area):
        prompts = [list(range(m.offset, m.offset + m.prompt_length)) for m in members]
        own = [
            list(range(start, start + length - 1))
            for m in members
            for start, length in zip(m.completion_offsets, m.completion_lengths, strict=True)
        ]
        queries.append(own)
        own_index = _pad(own, device)
        mask = _completion_mask([len(p) for p in prompts], len(own) // len(members), own_index.shape[1], device)
        completions.append(CompletionBlock(_pad(prompts, device, left=True), own_index, mask))
    return AttentionPlan(tuple(causal), tuple(completions), _order(queries, device))


def dense_mask(layouts: Sequence[GroupLayout], device: torch.device) -> Tensor:
    """The same attention as a bool [1, 1, L, L] mask, True = attend: the reference form.

    Example, prompt of 2 tokens, completions that occupy 2 and 1 positions:

        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 0 0 1
    """
    groups: list[int] = []
    parts: list[int] = []  # 0 the prompt, i the i-th completion
    for number, layout in enumerate(layouts):
        groups += [number] * layout.num_tokens
        parts += [0] * layout.prompt_length
        for part, length in enumerate(layout.completion_lengths, start=1):
            parts += [part] * (length - 1)
    group_of, part_of = torch.tensor(groups, device=device), torch.tensor(parts, device=device)
    causal = torch.ones(len(groups), len(groups), dtype=torch.bool, device=device).tril()
    same_group = group_of.unsqueeze(1).eq(group_of)
    same_part = part_of.unsqueeze(1).eq(part_of)
    return (causal & same_group & (same_part | part_of.eq(0)))[None, None]


def _batches(items: Sequence[T], area: Callable[[Sequence[T]], tuple[float, float]]) -> list[list[T]]:
    """Consecutive items joined while `area(batch) = (padded, real)` keeps padding low."""
    batches: list[list[T]] = []
    for item in items:
        if batches:
            padded, real = area([*batches[-1], item])
            if padded <= _MAX_PADDING * real:
                batches[-1].append(item)
                continue
        batches.append([item])
    return batches


def _causal_area(batch: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(padded, real) positions of (start, length) sequences in one block."""
    lengths = [length for _, length in batch]
    return max(lengths) * len(lengths), sum(lengths)


def _completion_area(members: Sequence[GroupLayout]) -> tuple[float, float]:
    """(padded, real) query-key pairs of groups in one block; groups of unequal G never share one."""
    shapes = [_shape(member) for member in members]
    sizes, prompts, widths = (set(values) for values in zip(*shapes, strict=True))
    padded = sum(g * max(widths) * (max(prompts) + max(widths)) for g, _, _ in shapes)
    if len(sizes) > 1 or (len(prompts) > 1 and padded > _MAX_MASK_ELEMENTS):
        return math.inf, 0.0
    return padded, sum(g * w * (p + w) for g, p, w in shapes)


def _shape(layout: GroupLayout) -> tuple[int, int, int]:
    """(G, P, positions of the longest completion)."""
    return len(layout.completion_lengths), layout.prompt_length, max(layout.completion_lengths) - 1


def _completion_mask(prompt_lengths: Sequence[int], completions: int, width: int, device: torch.device) -> Tensor:
    """The mask of a `CompletionBlock`: real prompt keys, and own keys up to the query."""
    longest = max(prompt_lengths)
    own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    if min(prompt_lengths) == longest:
        return torch.cat([own.new_ones(width, longest), own], dim=1)[None, None]
    padding = longest - torch.tensor(prompt_lengths, device=device).repeat_interleave(completions)
    real = torch.arange(longest, device=device) >= padding[:, None]  # [B*G, P]
    rows = len(real)
    return torch.cat([real[:, None].expand(rows, width, longest), own.expand(rows, width, width)], dim=2)[:, None]


def _pad(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> Tensor:
    """int64 [rows, longest] padded with position 0, whose value is never attended to or read."""
    width = max(len(row) for row in rows)
    filled = []
    for row in rows:
        fill = [0] * (width - len(row))
        filled.append([*fill, *row] if left else [*row, *fill])
    return torch.tensor(filled, dtype=torch.int64, device=device)


def _order(queries: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tensor:
    """Place of each row position in the flattened outputs of blocks padded right."""
    place: dict[int, int] = {}
    base = 0
    for rows in queries:
        width = max(len(row) for row in rows)
        for row in rows:
            place.update(zip(row, range(base, base + len(row)), strict=True))
            base += width
    return torch.tensor([place[position] for position in range(len(place))], dtype=torch.int64, device=device)
