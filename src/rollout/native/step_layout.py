"""Where the rows of a decode step find their keys: the grid of completions by prompt, and the masks.

Two forms of the same: exact (as many rows, prompts and columns as there are, masks only where something is masked) and
padded to fixed shapes, which a captured graph needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Completions sorted by their prompts; changes only when completions enter or leave.

    Attributes:
        slots: prompts B.
        width: most completions of one prompt, W.
        prompt_width: tokens of the longest prompt.
        places: int64 [R], where each row stands in the grid [B x W]; None: row i at place i.
        members: int64 [B x W], the row at each place, any where there is none; None likewise.
        prompt_bias: float32 [B, 1, 1, prompt_width], -inf beyond a prompt's end; None: all are equally long.
    """

    slots: int
    width: int
    prompt_width: int
    places: Tensor | None
    members: Tensor | None
    prompt_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What the cache needs to know in a step.

    Attributes:
        grid: completions by prompt.
        rows: completions R.
        column: where the step's keys are written: a number, or int64 [1] on the device.
        width: columns that are read.
        own_bias: float32 [R, 1, 1, width], -inf where a column is not the row's; None: all are.
    """

    grid: Grid
    rows: int
    column: int | Tensor
    width: int
    own_bias: Tensor | None


def grid_of(slot: Tensor, lengths: Sequence[int]) -> Grid:
    """Sort rows by prompt.

    Example:
        Rows 0 and 2 are of prompt 0, row 1 is of prompt 1: the grid is [[0, 2], [1, -]].

        >>> grid_of(torch.tensor([0, 1, 0]), [5, 5]).places
        tensor([0, 2, 1])

    Args:
        slot: int64 [R], the prompt of each row.
        lengths: tokens of each prompt; each has at least one row.
    """
    device, count = slot.device, len(lengths)
    order = torch.argsort(slot, stable=True)
    ordered = slot[order]
    starts = torch.searchsorted(ordered, torch.arange(count, device=device))
    rank = torch.arange(len(slot), device=device) - starts[ordered]
    width = int(rank.max()) + 1
    taken = ordered * width + rank
    places, members = torch.empty_like(slot), slot.new_zeros(count * width)
    places[order], members[taken] = taken, order
    longest = max(lengths)
    bias = None
    if min(lengths) < longest:
        bias = prompt_bias(torch.tensor(lengths, device=device), longest)
    if len(slot) == count * width and bool((taken == order).all()):
        return Grid(count, width, longest, None, None, bias)
    return Grid(count, width, longest, places, members, bias)


def prompt_bias(lengths: Tensor, width: int) -> Tensor:
    """float32 [B, 1, 1, width]: -inf from each prompt's end on. Lengths int64 [B]."""
    beyond = torch.arange(width, device=lengths.device) >= lengths[:, None]
    return _bias(beyond)


def own_bias(steps: Tensor, column: int | Tensor, width: int, columns: int) -> Tensor:
    """float32 [R, 1, 1, width]: -inf where a column is older than the row.

    Example:
        Columns are used in turn. Of 4, the newest is column 0, then come 3, 2 and 1; of two rows that fed 3 tokens and
        1, the first owns columns 0, 3 and 2, the second column 0.

        >>> own_bias(torch.tensor([3, 1]), 0, 4, 4)[:, 0, 0]
        tensor([[0., -inf, 0., 0.],
                [0., -inf, -inf, -inf]])

    Args:
        steps: int64 [R], tokens fed so far, this one included.
        column: of this step, below `columns`.
        width: columns that are read.
        columns: that there are.
    """
    age = (column - torch.arange(width, device=steps.device)) % columns
    return _bias(age >= steps[:, None])


def _bias(masked: Tensor) -> Tensor:
    return torch.zeros(masked.shape, device=masked.device).masked_fill_(masked, -torch.inf)[:, None, None]
