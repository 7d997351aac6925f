"""Prompt groups packed into one flat row, each prompt once.

A group of G completions is trained as the single sequence `[prompt, y_1, …, y_G]`. Position ids restart after the
prompt for each y_i, and attention (`models.attention`) lets a completion see the prompt and itself only, so the row
gives the log-probabilities of G separate `[prompt, y_i]` rows at the cost of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where one group lies in a packed row.

    Attributes:
        offset: position in the row of the prompt's first token.
        prompt_length: P, tokens of the prompt.
        completion_lengths: sampled tokens T_i of each completion. Its last token predicts nothing, so it is no input:
            completion i occupies T_i - 1 positions.
    """

    offset: int
    prompt_length: int
    completion_lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Positions that the group occupies: P + sum of (T_i - 1)."""
        return self.prompt_length + sum(self.completion_lengths) - len(self.completion_lengths)

    @property
    def completion_offsets(self) -> tuple[int, ...]:
        """Position in the row of each completion's first input token."""
        start = self.offset + self.prompt_length
        return tuple(accumulate((length - 1 for length in self.completion_lengths[:-1]), initial=start))


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One or more groups in one row of L input tokens that scores N sampled tokens.

    Attributes:
        input_ids: int64 [L].
        position_ids: int64 [L], restarting at P for each completion of a group.
        score_positions: int64 [N], the position whose hidden state predicts each sampled token.
        targets: int64 [N], the sampled tokens, in the order of the groups and of their completions.
        layouts: one a group, in order.
    """

    input_ids: Tensor
    position_ids: Tensor
    score_positions: Tensor
    targets: Tensor
    layouts: tuple[GroupLayout, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sampled tokens of each completion of the row; they sum to N."""
        return tuple(length for layout in self.layouts for length in layout.completion_lengths)

    def to(self, device: torch.device) -> PackedRow:
        """The same row on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            score_positions=self.score_positions.to(device),
            targets=self.targets.to(device),
        )


def pack(groups: Sequence[PromptGroup]) -> PackedRow:
    """Pack prompt groups into one row, in order.

    Example, prompt `[10, 11]` with completions `[20, 21, 22]` and `[30, 31]`:

        input_ids        10 11 | 20 21 | 30
        position_ids      0  1 |  2  3 |  2
        score_positions   1  2  3 |  1  4
        targets          20 21 22 | 30 31

    Both first tokens are predicted by the prompt's last position; 22 and 31 predict nothing and are left out.

    Raises:
        ValueError: no group, an empty prompt, or an empty completion.
    """
    return _pack([(group.prompt_ids, group.token_ids, tuple(group.lengths.tolist())) for group in groups])


def pack_sequences(pairs: Sequence[tuple[Tensor, Tensor]]) -> PackedRow:
    """Pack (prompt ids [P], target ids [T]) pairs, each a group of one completion. Supervised fine-tuning uses this.

    Loss on the prompt too is the split `(ids[:1], ids[1:])`.

    Raises:
        ValueError: no pair, an empty prompt, or an empty target.
    """
    return _pack([(prompt, target, (len(target),)) for prompt, target in pairs])


def row_tokens(group: PromptGroup) -> int:
    """Input positions that a group takes in a packed row: P + sum of (T_i - 1)."""
    return len(group.prompt_ids) + len(group.token_ids) - len(group.lengths)


def balance(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of `sizes` split into as few rows of at most `max_tokens` as longest-first filling finds.

    Each item goes to the row with the fewest tokens, longest item first. An item over the budget goes alone. Items keep
    their order in a row, and rows are ordered by their first item.

    >>> balance([4, 9, 3, 5, 30], max_tokens=12)
    [[0, 3], [1, 2], [4]]

    Args:
        sizes: tokens of each item.
        max_tokens: budget of a row.

    Raises:
        ValueError: a budget below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, found {max_tokens}.")
    alone = [[index] for index, size in enumerate(sizes) if size >= max_tokens]
    rest = [index for index, size in enumerate(sizes) if size < max_tokens]
    if not rest:
        return alone
    small = [sizes[index] for index in rest]
    for count in range(-(-sum(small) // max_tokens), len(rest) + 1):
        rows = [[rest[position] for position in row] for row in divide(small, max(1, count))]
        if all(sum(sizes[index] for index in row) <= max_tokens for row in rows):
            break
    return sorted(rows + alone)


def divide(sizes: Sequence[int], parts: int, loads: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of `sizes` shared out to `parts`, longest first, each to the part with the least; order is kept within.

    >>> divide([4, 9, 3, 5], parts=2)
    [[1, 2], [0, 3]]
    >>> divide([7], parts=2, loads=[10, 4])
    [[], [0]]

    Args:
        sizes: tokens (or another cost) of each item.
        parts: how many parts; some may stay empty.
        loads: what each part carries already. It decides only between parts that are equal so far.

    Raises:
        ValueError: `parts` below 1.
    """
    if parts < 1:
        raise ValueError(f"divide: expected at least 1 part, found {parts}.")
    before = [0] * parts if loads is None else loads
    shares: list[list[int]] = [[] for _ in range(parts)]
    added = [0] * parts
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = min(range(parts), key=lambda part: (added[part], before[part]))
        shares[least].append(index)
        added[least] += sizes[index]
    return [sorted(share) for share in shares]


def _pack(items: Sequence[tuple[Tensor, Tensor, tuple[int, ...]]]) -> PackedRow:
    """Pack (prompt ids [P], sampled ids [sum T_i], lengths T_i) triples."""
    if not items:
        raise ValueError("pack: expected at least one group, found none.")
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    scores: list[Tensor] = []
    layouts: list[GroupLayout] = []
    offset = 0
    for index, (prompt, tokens, lengths) in enumerate(items):
        size, device = len(prompt), prompt.device
        if size == 0 or not lengths or min(lengths) == 0:
            raise ValueError(
                f"pack: group {index}: expected a prompt and completions of at least one token each, "
                f"found a prompt of {size} and completions of {list(lengths)} tokens."
            )
        layout = GroupLayout(offset, size, lengths)
        ids.append(prompt)
        positions.append(torch.arange(size, device=device))
        last = torch.tensor([offset + size - 1], device=device)
        for start, completion in zip(layout.completion_offsets, torch.split(tokens, list(lengths)), strict=True):
            inputs = len(completion) - 1
            ids.append(completion[:-1])
            positions.append(torch.arange(size, size + inputs, device=device))
            scores += [last, torch.arange(start, start + inputs, device=device)]
        layouts.append(layout)
        offset += layout.num_tokens
    targets = torch.cat([tokens for _, tokens, _ in items])
    return PackedRow(torch.cat(ids), torch.cat(positions), torch.cat(scores), targets, tuple(layouts))
