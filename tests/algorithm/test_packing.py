"""Packed rows of hand-made groups, position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from src.algorithm.experience import PromptGroup, Tree
from src.algorithm.packing import GroupLayout, balance, deal, divide, pack, pack_sequences, padded, row_tokens


def group(prompt: list[int], completions: list[list[int]]) -> PromptGroup:
    tokens = [token for completion in completions for token in completion]
    n, g = len(tokens), len(completions)
    return PromptGroup(
        prompt_ids=torch.tensor(prompt, dtype=torch.int64),
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        lengths=torch.tensor([len(completion) for completion in completions], dtype=torch.int64),
        rollout_logprobs=torch.zeros(n),
        regions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.zeros(g),
        advantages=torch.zeros(g),
        weights=torch.ones(n),
    )


def test_one_group() -> None:
    row = pack([group([10, 11], [[20, 21, 22], [30, 31]])])
    assert row.input_ids.tolist() == [10, 11, 20, 21, 30]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert row.score_positions.tolist() == [1, 2, 3, 1, 4]
    assert row.targets.tolist() == [20, 21, 22, 30, 31]
    assert row.sequences.tolist() == [0, 0, 0, 1, 1]
    assert row.layouts == (GroupLayout(0, (2, 2, 1), (-1, 0, 0)),) == (GroupLayout.of(0, 2, (3, 2)),)
    assert row.layouts[0].starts == (0, 2, 4)


def test_several_groups_and_completions_of_one_token() -> None:
    # [5] with completions [6] and [7, 8]: positions 0 | - | 1. Then [1, 2, 3] with [4] and [9]: positions 2-4 only.
    row = pack([group([5], [[6], [7, 8]]), group([1, 2, 3], [[4], [9]])])
    assert row.input_ids.tolist() == [5, 7, 1, 2, 3]
    assert row.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert row.score_positions.tolist() == [0, 0, 1, 4, 4]
    assert row.targets.tolist() == [6, 7, 8, 4, 9]
    assert row.sequences.tolist() == [0, 1, 1, 2, 3]
    assert row.layouts == (GroupLayout.of(0, 1, (1, 2)), GroupLayout.of(2, 3, (1, 1)))
    assert row.layouts[0].starts == (0, 1, 1)


def forked(prompt: list[int], runs: list[tuple[int, int, list[int]]], observed: set[int]) -> PromptGroup:
    """A group of (completion, parent, tokens) runs; of those tokens, the observed ones are not sampled."""
    tokens = torch.tensor([token for _, _, run in runs for token in run])
    sampled = torch.tensor([int(token) not in observed for token in tokens])
    completions = torch.tensor([completion for completion, _, _ in runs])
    sizes = torch.tensor([len(run) for _, _, run in runs])
    parents = torch.tensor([parent for _, parent, _ in runs])
    own = tokens[sampled]
    lengths = torch.bincount(completions.repeat_interleave(sizes)[sampled])
    plain = group(prompt, [part.tolist() for part in own.split(lengths.tolist())])
    return replace(plain, tree=Tree(tokens, sampled, sizes, parents, completions))


EPISODES = forked(
    [10, 11],
    [
        (0, -1, [20, 21, 90, 91, 22, 23]),  # two answers, what was observed between them
        (1, -1, [30, 31]),  # what both histories share
        (1, 1, [32, 92, 33]),  # the rest of the first history, and its second answer
        (1, 1, [93, 94, 34]),  # the rewritten one
    ],
    observed={90, 91, 92, 93, 94},
)
"""Two episodes; the second one's history was rewritten behind its second token."""


def test_episodes_are_trees_whose_observations_are_inputs_only() -> None:
    row = pack([EPISODES, group([12], [[40, 41]])])
    assert row.input_ids.tolist() == [10, 11, 20, 21, 90, 91, 22, 30, 31, 32, 92, 93, 94, 12, 40]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 4, 5, 0, 1]
    assert row.targets.tolist() == [20, 21, 22, 23, 30, 31, 32, 33, 34, 40, 41]
    assert row.input_ids[row.score_positions].tolist() == [11, 20, 91, 22, 11, 30, 31, 92, 94, 12, 40]
    assert row.sequences.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3]
    first, second = row.layouts
    assert first == GroupLayout(0, (2, 5, 2, 2, 2), (-1, 0, 0, 2, 2))
    assert first.ends == (13, 7, 13, 11, 13)
    assert first.sequences == ((0, 1), (0, 2, 3), (0, 2, 4))
    assert second == GroupLayout(13, (1, 1), (-1, 0))
    assert row_tokens(EPISODES) == 13


def test_part_of_a_tree_is_the_tree_of_its_completions() -> None:
    assert EPISODES.tree is not None
    second = EPISODES.tree.chosen(torch.tensor([False, True]))
    assert second.token_ids.tolist() == [30, 31, 32, 92, 33, 93, 94, 34]
    assert second.sampled.tolist() == [True, True, True, False, True, False, False, True]
    assert (second.sizes.tolist(), second.parents.tolist()) == ([2, 3, 3], [-1, 0, 0])
    assert second.completions.tolist() == [0, 0, 0]


def test_a_group_of_some_completions_is_packed_like_the_whole() -> None:
    """Of three single answers the first and the last; of two episodes the second, with its rewritten history."""
    some = group([10, 11], [[20, 21, 22], [30, 31], [40, 41]]).chosen(torch.tensor([True, False, True]))
    row = pack([some])
    assert row.input_ids.tolist() == [10, 11, 20, 21, 40]
    assert row.targets.tolist() == [20, 21, 22, 40, 41] and some.lengths.tolist() == [3, 2]
    row = pack([EPISODES.chosen(torch.tensor([False, True]))])
    assert row.input_ids.tolist() == [10, 11, 30, 31, 32, 92, 93, 94]
    assert row.targets.tolist() == [30, 31, 32, 33, 34]
    assert EPISODES.chosen(torch.tensor([True, True])) is EPISODES


def test_a_completion_has_an_advantage_if_one_of_its_tokens_has() -> None:
    one = group([1], [[2, 3], [4], [5, 6]])
    assert one.with_advantage.tolist() == [False, False, False]
    assert replace(one, advantages=torch.tensor([0.0, -1.0, 0.5])).with_advantage.tolist() == [False, True, True]
    by_turn = replace(one, advantages=torch.ones(3), credit=torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0]))
    assert by_turn.with_advantage.tolist() == [True, False, False]
    broken = replace(one, advantages=torch.tensor([0.0, torch.nan, 0.0]))
    assert broken.with_advantage.tolist() == [False, True, False]  # what is not a number is not left out


def test_refuses_runs_out_of_order() -> None:
    bad = forked([1], [(0, -1, [2, 3]), (0, 0, [4]), (0, -1, [5]), (0, 0, [6])], observed=set())
    with pytest.raises(ValueError, match="depth-first order"):
        pack([bad])


def test_sequences_are_groups_of_one() -> None:
    pairs = [(torch.tensor([1, 2]), torch.tensor([3, 4])), (torch.tensor([5]), torch.tensor([6, 7, 8]))]
    row = pack_sequences(pairs)
    assert row.input_ids.tolist() == [1, 2, 3, 5, 6, 7]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert row.score_positions.tolist() == [1, 2, 3, 4, 5]
    assert row.targets.tolist() == [3, 4, 6, 7, 8]


def test_every_target_is_predicted_by_the_token_before_it() -> None:
    row = pack([group([10, 11], [[20, 21, 22], [30, 31]]), group([12], [[40, 41, 42]])])
    before = row.input_ids[row.score_positions].tolist()
    assert list(zip(before, row.targets.tolist(), strict=True)) == [
        (11, 20), (20, 21), (21, 22), (11, 30), (30, 31), (12, 40), (40, 41), (41, 42),
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [[], [group([], [[1]])], [group([1], [[2], []])], [group([1], [])]])
def test_refuses_empty_parts(groups: list[PromptGroup]) -> None:
    with pytest.raises(ValueError, match=r"pack: .*expected"):
        pack(groups)


def test_padding_is_a_group_that_scores_nothing() -> None:
    row = pack_sequences([(torch.tensor([5, 6]), torch.tensor([7, 8]))])
    wide = padded(row, 5)
    assert wide.input_ids.tolist() == [5, 6, 7, 0, 0] and wide.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert wide.layouts == (*row.layouts, GroupLayout(3, (2,), (-1,)))
    assert wide.score_positions is row.score_positions and padded(row, 3) is row


def test_balance_keeps_to_the_budget_and_evens_rows_out() -> None:
    # 30 is over the budget and goes alone; 9 + 5 + 4 + 3 = 21 needs two rows of 12: 9 and 3, 5 and 4.
    assert balance([4, 9, 3, 5, 30], max_tokens=12) == [[0, 3], [1, 2], [4]]
    assert balance([4, 4, 4], max_tokens=12) == [[0, 1, 2]]
    assert balance([7, 7, 7], max_tokens=12) == [[0], [1], [2]]
    assert balance([], max_tokens=12) == []


def test_balance_makes_as_many_rows_as_are_asked_for() -> None:
    assert balance([4, 9, 3, 5, 30], max_tokens=12, least=3) == [[0, 3], [1, 2], [4]]  # as without
    assert balance([4, 9, 3, 5, 30], max_tokens=12, least=4) == [[0, 2], [1], [3], [4]]  # 9 | 5 | 4 + 3
    assert balance([4, 30], max_tokens=12, least=4) == [[], [], [0], [1]]
    assert balance([30], max_tokens=12, least=2) == [[], [0]]
    assert balance([], max_tokens=12, least=2) == [[], []]


def test_deal_gives_each_part_a_row_in_turn_from_the_longest_on() -> None:
    """At most 12 a row: 30 alone, 9, 5 + 4 and 8 are four rows. First turn: 30 and 9; second: part 1 has less, gets
    9 and the 8 is part 0's. Of three rows (30, 9 + 3, 8) a fourth is made: 30, 9, 8, 3."""
    assert deal([30, 9, 8, 5, 4], parts=2, max_tokens=12) == [[0, 2], [1, 3, 4]]
    assert deal([30, 9, 8, 3], parts=2, max_tokens=12) == [[0, 3], [1, 2]]
    assert deal([5, 5, 5], parts=3, max_tokens=12, loads=[9, 0, 4]) == [[2], [0], [1]]
    assert deal([5], parts=2, max_tokens=12, loads=[1, 0]) == [[], [0]]
    assert deal([], parts=2, max_tokens=12) == [[], []]


def test_divide_evens_out_and_prefers_the_part_with_the_lighter_load() -> None:
    assert divide([4, 9, 3, 5], parts=2) == [[1, 2], [0, 3]]
    assert divide([5, 5, 5], parts=3, loads=[9, 0, 4]) == [[2], [0], [1]]
    assert divide([5, 2], parts=4, loads=[1, 0, 0, 0]) == [[], [0], [1], []]
    assert divide([], parts=2) == [[], []]
    with pytest.raises(ValueError, match="expected at least 1 part, found 0"):
        divide([1], parts=0)


@pytest.mark.parametrize("share_out", [divide, partial(deal, max_tokens=70)])
def test_minibatches_that_are_shared_out_leave_no_part_without_an_item(share_out: Callable[..., Any]) -> None:
    """Any number of prompts in minibatches of any size: with at least as many prompts as parts, each part gets one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        parts = int(torch.randint(1, 9, (), generator=generator))
        size = int(torch.randint(1, 6, (), generator=generator))
        sizes = torch.randint(1, 60, (parts + size * 3,), generator=generator).tolist()
        loads = [0] * parts
        for start in range(0, len(sizes), size):
            minibatch = sizes[start : start + size]
            shares = share_out(minibatch, parts, loads=loads)
            assert sorted(index for share in shares for index in share) == list(range(len(minibatch)))
            assert max(map(len, shares)) <= -(-len(minibatch) // parts) or len(set(minibatch)) > 1
            loads = [load + sum(minibatch[i] for i in share) for load, share in zip(loads, shares, strict=True)]
        assert min(loads) > 0


def test_balance_on_many_random_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        count = int(torch.randint(1, 30, (), generator=generator))
        sizes = torch.randint(1, 60, (count,), generator=generator).tolist()
        rows = balance(sizes, 50)
        assert sorted(index for row in rows for index in row) == list(range(count))
        assert all(rows)
        assert all(len(row) == 1 or sum(sizes[i] for i in row) <= 50 for row in rows)


def test_row_tokens_counts_the_positions_of_packed_rows() -> None:
    groups = [group([1] * p, [[2] * 3, [3] * 2]) for p in (5, 2, 4)]
    assert [row_tokens(g) for g in groups] == [len(pack([g]).input_ids) for g in groups] == [8, 5, 7]
