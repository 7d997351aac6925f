"""Packed rows as sizes: the longest ones that a config can make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from src.algorithm.packing import GroupLayout, PackedRow


@dataclass(frozen=True, slots=True)
class RowShape:
    """A packed row of equal groups.

    Attributes:
        groups: prompt groups in the row.
        prompt: P, tokens of each prompt.
        completions: G, completions of each prompt.
        completion: T, sampled tokens of each completion.
    """

    groups: int
    prompt: int
    completions: int
    completion: int

    @property
    def tokens(self) -> int:
        """L, input positions.

        >>> RowShape(groups=2, prompt=10, completions=3, completion=5).tokens
        44
        """
        return self.groups * (self.prompt + self.completions * (self.completion - 1))

    @property
    def scored(self) -> int:
        """N, tokens that get a log-probability."""
        return self.groups * self.completions * self.completion

    def row(self) -> PackedRow:
        """Such a row, of zeros."""
        size = self.tokens // self.groups
        lengths = (self.completion,) * self.completions
        layouts = tuple(GroupLayout(size * i, self.prompt, lengths) for i in range(self.groups))
        inputs, scored = torch.zeros(self.tokens, dtype=torch.long), torch.zeros(self.scored, dtype=torch.long)
        return PackedRow(inputs, inputs, scored, scored, layouts)


def longest_rows(budget: int, groups: int, prompt: int, completions: int, completion: int) -> tuple[RowShape, ...]:
    """The packed rows that can take most memory: one of most tokens, and one of most prompts.

    A group that is longer than the budget has a row of its own. Many long prompts with short completions take fewer
    tokens but more keys, since each completion meets its prompt's.

    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in longest_rows(2048, 2, 1024, 4, 192)]
    [(1, 1024, 192, 1788), (2, 1020, 2, 2048)]
    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in longest_rows(16384, 2, 100, 4, 51)]
    [(2, 100, 51, 600)]

    Args:
        budget: `updates.max_row_tokens`.
        groups: most groups that there are to pack.
        prompt: tokens of the longest prompt.
        completions: of each prompt.
        completion: tokens of the longest completion.
    """
    whole = RowShape(1, prompt, completions, completion)
    if whole.tokens * groups <= budget:
        return (replace(whole, groups=groups),)
    many = min(groups, max(-(-budget // whole.tokens), budget // (prompt + completions)))
    size = budget // many
    short = max(2, 1 + -(-(size - prompt) // completions))
    crowded = RowShape(many, size - completions * (short - 1), completions, short)
    if crowded.prompt < 1:
        return (whole,)
    return (whole, crowded)
