"""Which groups share a row, and what becomes of rows that do not fit into memory. Numbers and slices only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import balance, completion_tokens, layout_of, row_tokens
from src.models.rows import batches


@dataclass(frozen=True, slots=True)
class RowPlan:
    """How some groups become rows.

    Attributes:
        pieces: what rows are made of: the groups, or where one is too long, parts of it that all carry its prompt.
        owners: the index of each piece's group, ascending.
        rows: indices of the pieces of each row; a row may be empty, for a forward that other ranks wait for.
    """

    pieces: list[PromptGroup]
    owners: list[int]
    rows: list[list[int]]

    def row(self, indices: Sequence[int]) -> list[PromptGroup]:
        """The pieces of a row."""
        return [self.pieces[index] for index in indices]

    @property
    def longest_divisible(self) -> int:
        """Tokens of the longest row that could be shorter rows: it has two groups or two completions; 0 without one."""
        divisible = [row for row in self.rows if sum(len(self.pieces[index].lengths) for index in row) > 1]
        return max((sum(row_tokens(self.pieces[index]) for index in row) for row in divisible), default=0)


class RowBudget:
    """The longest row, which shrinks when memory runs out and stays small for the rest of the run.

    A group over the budget goes alone, whole; once memory has run out, in parts. A loss that is a sum over completions
    with counts of the whole minibatch (`algorithm.policy_loss`) and its gradient are the same for any rows.

    Args:
        max_tokens: of a row, as configured.
        separate: a row is a padded batch of prompts with one completion each (`models.rows`).

    Attributes:
        max_tokens: of a row, now.
    """

    def __init__(self, max_tokens: int, *, separate: bool = False) -> None:
        self._configured, self._separate = max_tokens, separate
        self.max_tokens = max_tokens

    def cost(self, group: PromptGroup) -> int:
        """Tokens that a forward over the whole group computes; 1 for a group without completions, to be shared too."""
        if not len(group.lengths):
            return 1
        return sum(map(_padded, split_group(group, 0))) if self._separate else row_tokens(group)

    def plan(self, groups: Sequence[PromptGroup], least: int = 0) -> RowPlan:
        """Rows of the groups within the budget.

        Args:
            groups: of one rank.
            least: how many rows to make at least, the longest first; 0: as few as there can be, by their first groups.
        """
        pieces: list[PromptGroup] = []
        owners: list[int] = []
        for index, group in enumerate(groups):
            whole = self.max_tokens == self._configured and not self._separate
            parts = [group] if whole else split_group(group, 0 if self._separate else self.max_tokens)
            pieces += parts
            owners += [index] * len(parts)
        sizes = [(_padded if self._separate else row_tokens)(piece) for piece in pieces]
        if self._separate:
            rows = batches(sizes, self.max_tokens)
            rows += [[] for _ in range(least - len(rows))]
        else:
            rows = balance(sizes, self.max_tokens, least)
        if least:
            rows.sort(key=lambda row: -sum(sizes[index] for index in row))
        return RowPlan(pieces, owners, rows)

    def shrink(self, longest_divisible: int) -> bool:
        """Make rows half as long as the longest that can be divided; False if there is none (0)."""
        if longest_divisible == 0:
            return False
        self.max_tokens = max(1, min(self.max_tokens, longest_divisible) // 2)
        return True

    def state_dict(self) -> dict[str, int]:
        """The budget, and the configured one that it came from."""
        return {"configured": self._configured, "max_tokens": self.max_tokens}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with a smaller budget, unless the configured one was changed since."""
        if state["configured"] == self._configured:
            self.max_tokens = state["max_tokens"]


def split_group(group: PromptGroup, max_tokens: int) -> list[PromptGroup]:
    """Parts of a group, each its prompt with some of its completions, of at most `max_tokens` in a packed row.

    Completions keep their order, so that per-token vectors of the parts, end to end, are those of the group. A part
    has at least one completion, however long.

    Example: prompt of 10, completions of 6, 6 and 3 tokens, which take 5, 5 and 2 positions. Within 18 tokens: the
    first alone would be 15, with the second 20; so [6], and [6, 3] of 17.

    Args:
        group: with or without log-probabilities.
        max_tokens: of a part.
    """
    prompt, inputs = len(group.prompt_ids), completion_tokens(group)
    stops: list[int] = []
    size = prompt
    for index, more in enumerate(inputs):
        if size > prompt and size + more > max_tokens:
            stops.append(index)
            size = prompt
        size += more
    bounds = [0, *stops, len(inputs)]
    places = torch.arange(len(inputs), device=group.lengths.device)
    return [group.chosen((places >= start) & (places < stop)) for start, stop in pairwise(bounds)]


def _padded(group: PromptGroup) -> int:
    """Tokens that a group takes in a padded batch: its sequences, all as long as the longest."""
    layout = layout_of(group)
    longest = max(depth + size for depth, size in zip(layout.depths, layout.sizes, strict=True))
    return longest * len(layout.sequences)
