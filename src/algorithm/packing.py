"""Prompt groups packed into one flat row, each prompt once.

A group of G completions is trained as the single sequence `[prompt, y_1, …, y_G]`. Position ids restart after the
prompt for each y_i, and attention (`models.attention`) lets a completion see the prompt and itself only, so the row
gives the log-probabilities of G separate `[prompt, y_i]` rows at the cost of one prompt. Completions whose history was
rewritten are trees of runs (`experience.Tree`): a run sees the runs that it follows, and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from src.algorithm.experience import PromptGroup, Tree


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where one group lies in a packed row: runs of inputs in depth-first order, the prompt first.

    Attributes:
        offset: position in the row of the prompt's first token.
        sizes: inputs of each run. The last token of a run that nothing follows predicts nothing and is no input.
        parents: the run that each follows; -1 for the prompt.
    """

    offset: int
    sizes: tuple[int, ...]
    parents: tuple[int, ...]

    @classmethod
    def of(cls, offset: int, prompt_length: int, completion_lengths: Sequence[int]) -> GroupLayout:
        """A prompt of P tokens and completions of T_i, which have T_i - 1 inputs each."""
        sizes = (prompt_length, *(length - 1 for length in completion_lengths))
        return cls(offset, sizes, (-1, *(0 for _ in completion_lengths)))

    @property
    def num_tokens(self) -> int:
        """Positions that the group occupies; of single answers P + sum of (T_i - 1)."""
        return sum(self.sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Position in the row of each run's first input."""
        return tuple(accumulate(self.sizes[:-1], initial=self.offset))

    @property
    def depths(self) -> tuple[int, ...]:
        """Position of each run's first input in its own sequence."""
        found = [0]
        for parent in self.parents[1:]:
            found.append(found[parent] + self.sizes[parent])
        return tuple(found)

    @property
    def ends(self) -> tuple[int, ...]:
        """Position in the row behind each run and all runs that follow it."""
        found = [start + size for start, size in zip(self.starts, self.sizes, strict=True)]
        for run in range(len(found) - 1, 0, -1):
            found[self.parents[run]] = max(found[self.parents[run]], found[run])
        return tuple(found)

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Of each run that nothing follows: the runs from the prompt to it.

        >>> GroupLayout(0, (4, 2, 3, 1), (-1, 0, 1, 1)).sequences
        ((0, 1, 2), (0, 1, 3))
        """
        paths: list[tuple[int, ...]] = [(0,)]
        for run, parent in enumerate(self.parents[1:], 1):
            paths.append((*paths[parent], run))
        return tuple(path for run, path in enumerate(paths) if run not in self.parents)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One or more groups in one row of L input tokens that scores N sampled tokens.

    Attributes:
        input_ids: int64 [L].
        position_ids: int64 [L], of each token in its own sequence.
        score_positions: int64 [N], the position whose hidden state predicts each sampled token.
        sequences: int64 [N], a sequence (`GroupLayout.sequences`, counted over all groups) that has the token.
        targets: int64 [N], the sampled tokens, in the order of the groups and of their completions.
        layouts: one a group, in order.
    """

    input_ids: Tensor
    position_ids: Tensor
    score_positions: Tensor
    sequences: Tensor
    targets: Tensor
    layouts: tuple[GroupLayout, ...]

    def to(self, device: torch.device) -> PackedRow:
        """The same row on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "layouts"}
        return replace(self, **moved)


def pack(groups: Sequence[PromptGroup]) -> PackedRow:
    """Pack prompt groups into one row, in order.

    Example, prompt `[10, 11]` with completions `[20, 21, 22]` and `[30, 31]`:

        input_ids        10 11 | 20 21 | 30
        position_ids      0  1 |  2  3 |  2
        score_positions   1  2  3 |  1  4
        targets          20 21 22 | 30 31

    Both first tokens are predicted by the prompt's last position; 22 and 31 predict nothing and are left out.

    Raises:
        ValueError: no group, an empty prompt, an empty completion, or a tree that is not in order.
    """
    row = _pack([(group.prompt_ids, tree_of(group)) for group in groups])
    if all(group.tree is None for group in groups):
        return row
    sampled = torch.cat([tree_of(group).sampled for group in groups])
    return replace(
        row,
        **{name: getattr(row, name)[sampled] for name in ("score_positions", "sequences", "targets")},
    )


def padded(row: PackedRow, size: int) -> PackedRow:
    """The row with zeros behind it, up to `size` inputs, as a group of its own that scores nothing."""
    more = size - len(row.input_ids)
    if more == 0:
        return row
    return replace(
        row,
        input_ids=F.pad(row.input_ids, (0, more)),
        position_ids=torch.cat([row.position_ids, torch.arange(more, device=row.position_ids.device)]),
        layouts=(*row.layouts, GroupLayout(size - more, (more,), (-1,))),
    )


def tree_of(group: PromptGroup) -> Tree:
    """The group's tree, also of single answers."""
    if group.tree is not None:
        return group.tree
    return _single(group.token_ids, group.lengths)


def _single(token_ids: Tensor, lengths: Tensor) -> Tree:
    """Completions of sampled tokens only, each a run behind the prompt."""
    return Tree(
        token_ids,
        torch.ones_like(token_ids, dtype=torch.bool),
        lengths,
        torch.full_like(lengths, -1),
        torch.arange(len(lengths), device=lengths.device),
    )


def pack_sequences(pairs: Sequence[tuple[Tensor, Tensor]]) -> PackedRow:
    """Pack (prompt ids [P], target ids [T]) pairs, each a group of one completion. Supervised fine-tuning uses this.

    Loss on the prompt too is the split `(ids[:1], ids[1:])`.

    Raises:
        ValueError: no pair, an empty prompt, or an empty target.
    """
    return _pack([(prompt, _single(target, torch.tensor([len(target)]))) for prompt, target in pairs])


def row_tokens(group: PromptGroup) -> int:
    """Input positions that a group takes in a packed row; of single answers P + sum of (T_i - 1)."""
    if group.tree is None:
        return len(group.prompt_ids) + len(group.token_ids) - len(group.lengths)
    return layout_of(group).num_tokens


def completion_tokens(group: PromptGroup) -> list[int]:
    """Input positions of each completion in a packed row, without the prompt; of single answers T_i - 1."""
    found = [0] * len(group.lengths)
    for completion, size in zip(tree_of(group).completions.tolist(), layout_of(group).sizes[1:], strict=True):
        found[completion] += size
    return found


def layout_of(group: PromptGroup, offset: int = 0) -> GroupLayout:
    """Where a group lies in a row that has `offset` positions before it."""
    return _layout(len(group.prompt_ids), tree_of(group), offset)


def _layout(prompt_length: int, tree: Tree, offset: int) -> GroupLayout:
    sizes, parents = tree.sizes.tolist(), tree.parents.tolist()
    followed = set(parents)
    inputs = (size if run in followed else size - 1 for run, size in enumerate(sizes))
    return GroupLayout(offset, (prompt_length, *inputs), (-1, *(parent + 1 for parent in parents)))


def balance(sizes: Sequence[int], max_tokens: int, least: int = 0) -> list[list[int]]:
    """Indices of `sizes` split into as few rows of at most `max_tokens` as longest-first filling finds.

    Each item goes to the row with the fewest tokens, longest item first. An item over the budget goes alone. Items keep
    their order in a row, and rows are ordered by their first item.

    >>> balance([4, 9, 3, 5, 30], max_tokens=12)
    [[0, 3], [1, 2], [4]]
    >>> balance([4, 9, 3, 5, 30], max_tokens=12, least=4)
    [[0, 2], [1], [3], [4]]

    Args:
        sizes: tokens of each item.
        max_tokens: budget of a row.
        least: how many rows to make at least; where items are fewer, some are empty.

    Raises:
        ValueError: a budget below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, found {max_tokens}.")
    alone = [[index] for index, size in enumerate(sizes) if size >= max_tokens]
    rest = [index for index, size in enumerate(sizes) if size < max_tokens]
    if not rest:
        return [[] for _ in range(least - len(alone))] + alone
    small = [sizes[index] for index in rest]
    fewest = max(1, -(-sum(small) // max_tokens), least - len(alone))
    for count in range(fewest, max(fewest, len(rest)) + 1):
        rows = [[rest[position] for position in row] for row in divide(small, count)]
        if all(sum(sizes[index] for index in row) <= max_tokens for row in rows):
            break
    return sorted(rows + alone)


def deal(sizes: Sequence[int], parts: int, loads: Sequence[int] | None = None, *, max_tokens: int) -> list[list[int]]:
    """Indices of `sizes` shared out to `parts` that run rows in lock step: the n-th row of each at the same time.

    The rows are those of `balance`, equally many for each part. From the longest on, each part gets one in turn, so
    that rows of about the same length run together; in each turn the longest goes to the part with the least. `balance`
    of one part's items, with as many rows, finds rows of the same lengths again.

    Example: rows of at most 12 are 9, 7 + 2 and 5 + 4, then 8. The first part gets 9 and 5 + 4, the second 7 + 2 and 8.

    >>> deal([9, 8, 7, 5, 4, 2], parts=2, max_tokens=12)
    [[0, 3, 4], [1, 2, 5]]

    Args:
        sizes: tokens of each item.
        parts: how many parts; some may stay empty.
        loads: what each part carries already. It decides only between parts that are equal so far.
        max_tokens: budget of a row.
    """
    before = [0] * parts if loads is None else loads
    fewest = len(balance(sizes, max_tokens))
    rows = balance(sizes, max_tokens, least=-(-fewest // parts) * parts)
    longest_first = sorted(((sum(sizes[index] for index in row), row) for row in rows), key=lambda pair: -pair[0])
    shares: list[list[int]] = [[] for _ in range(parts)]
    added = [0] * parts
    for turn in range(0, len(rows), parts):
        least_first = sorted(range(parts), key=lambda part: (added[part], before[part]))
        for part, (size, row) in zip(least_first, longest_first[turn : turn + parts], strict=True):
            shares[part] += row
            added[part] += size
    return [sorted(share) for share in shares]


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


def _pack(items: Sequence[tuple[Tensor, Tree]]) -> PackedRow:
    """Pack prompt ids [P] with what follows them, as if all of that were sampled."""
    if not items:
        raise ValueError("pack: expected at least one group, found none.")
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    scores: list[Tensor] = []
    sequences: list[int] = []
    layouts: list[GroupLayout] = []
    offset = leaves = 0
    for index, (prompt, tree) in enumerate(items):
        size, device = len(prompt), prompt.device
        sizes: list[int] = tree.sizes.tolist()
        if size == 0 or not sizes or min(sizes) == 0:
            raise ValueError(
                f"pack: group {index}: expected a prompt and completions of at least one token each, "
                f"found a prompt of {size} and completions of {sizes} tokens."
            )
        layout = _layout(size, tree, offset)
        _check_order(layout.parents, index)
        ids.append(prompt)
        positions.append(torch.arange(size, device=device))
        starts, depths = layout.starts, layout.depths
        followed = set(layout.parents)
        for run, tokens in enumerate(torch.split(tree.token_ids, sizes), 1):
            start, depth, inputs, parent = starts[run], depths[run], layout.sizes[run], layout.parents[run]
            ids.append(tokens[:inputs])
            positions.append(torch.arange(depth, depth + inputs, device=device))
            scores.append(torch.tensor([starts[parent] + layout.sizes[parent] - 1], device=device))
            scores.append(torch.arange(start, start + len(tokens) - 1, device=device))
            sequences.append(leaves)
            leaves += run not in followed
        layouts.append(layout)
        offset += layout.num_tokens
    targets = torch.cat([tree.token_ids for _, tree in items])
    owners = torch.tensor(sequences, device=targets.device)
    lengths = torch.cat([tree.sizes for _, tree in items]).to(targets.device)
    return PackedRow(
        torch.cat(ids),
        torch.cat(positions),
        torch.cat(scores),
        owners.repeat_interleave(lengths, output_size=len(targets)),
        targets,
        tuple(layouts),
    )


def _check_order(parents: Sequence[int], index: int) -> None:
    """Refuse runs that are not in depth-first order: each follows the run before it or one that this follows."""
    path: list[int] = []
    for run, parent in enumerate(parents):
        while path and path[-1] != parent:
            path.pop()
        if run and not path:
            raise ValueError(f"pack: group {index}: expected runs in depth-first order, found the parents {parents}.")
        path.append(run)
