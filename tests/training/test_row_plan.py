"""Rows that shrink: what is split, what stays whole, and what a resumed run goes on with."""

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import row_tokens
from src.training.row_plan import RowBudget, split_group


def group(prompt: int, lengths: list[int], first_id: int = 0) -> PromptGroup:
    n = sum(lengths)
    return PromptGroup(
        prompt_ids=torch.arange(prompt),
        token_ids=torch.arange(first_id, first_id + n),
        lengths=torch.tensor(lengths),
        rollout_logprobs=torch.arange(n) / 10,
        regions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.arange(len(lengths)) * 1.0,
        advantages=torch.arange(len(lengths)) - 1.0,
        weights=torch.ones(n),
        old_logprobs=torch.arange(n) / 5,
    )


def test_parts_carry_the_prompt_and_are_the_group_end_to_end():
    """Prompt 10, positions 5, 5, 2: 10 + 5 = 15 and 10 + 5 + 2 = 17 fit into 18, 10 + 5 + 5 = 20 does not."""
    whole = group(10, [6, 6, 3])
    parts = split_group(whole, 18)
    assert [part.lengths.tolist() for part in parts] == [[6], [6, 3]]
    assert [row_tokens(part) for part in parts] == [15, 17]
    for name in ("token_ids", "rollout_logprobs", "weights", "old_logprobs", "rewards", "advantages"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert all(torch.equal(part.prompt_ids, whole.prompt_ids) for part in parts)
    assert all(part.ref_logprobs is None for part in parts)
    assert split_group(whole, 22) == [whole]
    assert [part.lengths.tolist() for part in split_group(whole, 1)] == [[6], [6], [3]]


def test_the_budget_halves_the_longest_row_until_nothing_can_be_divided():
    """Groups of 22 and 10 + 5 + 5 = 20 tokens in one row of 42; then 21, 20 → 10, and every completion is alone."""
    groups = [group(10, [6, 6, 3]), group(10, [6, 6])]
    budget = RowBudget(100)
    plan = budget.plan(groups)
    assert plan.rows == [[0, 1]] and plan.owners == [0, 1] and plan.longest_divisible == 42
    assert budget.shrink(plan.longest_divisible)
    plan = budget.plan(groups)
    assert budget.max_tokens == 21
    assert plan.owners == [0, 0, 1] and [piece.lengths.tolist() for piece in plan.pieces] == [[6, 6], [3], [6, 6]]
    assert plan.rows == [[0], [1], [2]] and plan.longest_divisible == 20
    assert budget.shrink(plan.longest_divisible)
    plan = budget.plan(groups)
    assert budget.max_tokens == 10
    assert plan.owners == [0, 0, 0, 1, 1] and plan.longest_divisible == 0
    assert not budget.shrink(plan.longest_divisible) and budget.max_tokens == 10


def test_a_group_over_the_configured_budget_stays_whole():
    plan = RowBudget(5).plan([group(10, [6, 6, 3])])
    assert len(plan.pieces) == 1 and plan.rows == [[0]]


def test_as_many_rows_as_other_ranks_have_the_longest_first():
    """10 + 5 = 15, 10 + 5 + 5 = 20 and 4 + 8 = 12 tokens: two rows of at most 35, three if another rank has three."""
    groups = [group(10, [6]), group(10, [6, 6]), group(4, [9])]
    budget = RowBudget(35)
    assert budget.plan(groups).rows == [[0, 2], [1]]
    assert budget.plan(groups, least=2).rows == [[0, 2], [1]]  # 27, 20
    assert budget.plan(groups, least=3).rows == [[1], [0], [2]]
    assert budget.plan(groups, least=4).rows == [[1], [0], [2], []]
    assert RowBudget(35, separate=True).plan(groups, least=4).rows == [[0, 1], [2, 3], [], []]


def test_a_group_costs_its_row_or_its_sequences():
    assert RowBudget(1).cost(group(10, [6, 6, 3])) == 10 + 5 + 5 + 2
    assert RowBudget(1, separate=True).cost(group(10, [6, 6, 3])) == 15 + 15 + 12


def test_a_resumed_run_keeps_the_smaller_budget_unless_another_is_configured():
    budget = RowBudget(100)
    budget.shrink(60)
    same, other = RowBudget(100), RowBudget(200)
    same.load_state_dict(budget.state_dict())
    other.load_state_dict(budget.state_dict())
    assert same.max_tokens == 30 and other.max_tokens == 200


def test_separate_rows_are_batches_of_single_completions_by_length():
    """Sequences of 10 + 5, 10 + 5, 10 + 2 and 4 + 8 = 12 tokens: two of 15 fill 30, and the two of 12 come next."""
    groups = [group(10, [6, 6, 3]), group(4, [9])]
    plan = RowBudget(30, separate=True).plan(groups)
    assert [piece.lengths.tolist() for piece in plan.pieces] == [[6], [6], [3], [9]]
    assert plan.owners == [0, 0, 0, 1]
    assert plan.rows == [[0, 1], [2, 3]]
    assert plan.longest_divisible == 30
    assert RowBudget(29, separate=True).plan(groups).rows == [[0], [1], [2, 3]]  # 12 beside 15 would be padded to 30
    assert RowBudget(1, separate=True).plan(groups).rows == [[0], [1], [2], [3]]


def test_separate_rows_shrink_like_packed_ones():
    budget = RowBudget(1000, separate=True)
    plan = budget.plan([group(10, [6, 6, 3])])
    assert plan.rows == [[0, 1, 2]] and plan.longest_divisible == 42
    assert budget.shrink(plan.longest_divisible) and budget.max_tokens == 21
    plan = budget.plan([group(10, [6, 6, 3])])
    assert plan.rows == [[0], [1], [2]] and not budget.shrink(plan.longest_divisible)
