"""Scores of groups over packed rows, and what happens when memory runs out, with a policy that is a table of logits."""

import math

import pytest
import torch

from src.training.ranks import Ranks
from src.training.scorer import Scorer
from tests.training.fakes import FakePolicy, Told, group

LOGITS = [0.0, math.log(2.0), math.log(5.0)]  # probabilities 1/8, 2/8, 5/8
GROUPS = [group([[0, 1], [2]], [1.0, -1.0]), group([[2, 2, 1]], [0.0])]


def build(room: int = 10**9, max_row_tokens: int = 100) -> tuple[Scorer, FakePolicy, Told]:
    policy, told = FakePolicy(LOGITS, room), Told()
    return Scorer(policy, Ranks(), max_row_tokens, told), policy, told  # type: ignore[arg-type]


def test_scores_are_those_of_each_groups_tokens_in_their_order():
    scorer, policy, _ = build()
    first, second = scorer.score(GROUPS, 1.0)
    torch.testing.assert_close(first.logprobs, torch.tensor([1 / 8, 2 / 8, 5 / 8]).log())
    torch.testing.assert_close(second.logprobs, torch.tensor([5 / 8, 5 / 8, 2 / 8]).log())
    entropy = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    torch.testing.assert_close(second.entropies, torch.full((3,), entropy))
    assert policy.rows == [2 + 1 + 0 + 2 + 2]  # one row: both prompts, and each completion without its last token


def test_a_temperature_divides_the_logits():
    scorer, _, _ = build()
    (scores,) = scorer.score(GROUPS[1:], 0.5)  # probabilities 1, 4, 25 of 30
    torch.testing.assert_close(scores.logprobs, torch.tensor([25 / 30, 25 / 30, 4 / 30]).log())


@pytest.mark.parametrize(("source", "scored"), [("score", 3), ("update", 1), ("sampler", 0)])
def test_what_the_update_scores_is_not_scored_before(source, scored):
    scorer, _, _ = build()
    groups = [*GROUPS, group([[1]], [0.5])]
    found = scorer.score_later(groups, [2, 1], source, 1.0)
    assert [len(scores.logprobs) for scores in found] == [3, 3, 1][3 - scored :]


def test_what_the_update_leaves_out_is_not_scored_before_it():
    """The second group has no advantage: it takes the sampler's log-probabilities, -1, and nobody tells entropies."""
    scorer, policy, _ = build()
    groups = [*GROUPS, group([[1], [0]], [0.5, 0.0])]
    _, idle, half = scorer.score_later(groups, [0, 3], "update", 1.0, skip=True)
    assert policy.rows == [2 + 1 + 0 + 2]  # the first group, and of the third its prompt alone
    assert idle.logprobs.tolist() == [-1.0] * 3 and bool(idle.entropies.isnan().all())
    torch.testing.assert_close(half.logprobs, torch.tensor([math.log(2 / 8), -1.0]))
    assert half.entropies.isnan().tolist() == [False, True]
    policy.rows.clear()
    scorer.score_later(groups, [0, 3], "score", 1.0, skip=True)  # a callback wants them all
    assert policy.rows == [2 + 1 + 0 + 2 + 2 + 2]


def test_rows_get_shorter_until_they_fit_and_stay_so():
    """The row of 7 tokens does not fit, and neither does one of 4 in the second try: 7 // 2 = 3 splits both groups."""
    scorer, policy, told = build(room=4)
    first, second = scorer.score(GROUPS, 1.0)
    whole = build()[0].score(GROUPS, 1.0)
    assert torch.equal(first.logprobs, whole[0].logprobs) and torch.equal(second.logprobs, whole[1].logprobs)
    assert scorer.budget.max_tokens == 3
    assert told.events == [("out_of_memory", {"where": "rows", "max_row_tokens": 3})]
    assert policy.rows[0] == 7 and max(policy.rows[1:]) <= 4
    scorer.score(GROUPS, 1.0)
    assert len(told.events) == 1  # nothing ran out again


def test_memory_that_runs_out_below_pytorchs_allocator_is_that_too():
    scorer, policy, told = build(room=4)
    policy.full = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    scorer.score(GROUPS, 1.0)
    assert told.events == [("out_of_memory", {"where": "rows", "max_row_tokens": 3})]
    scorer, policy, _ = build(room=4)
    policy.full = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        scorer.score(GROUPS, 1.0)


def test_a_completion_that_fits_nowhere_ends_the_run_with_advice():
    scorer, _, _ = build(room=1)
    with pytest.raises(torch.OutOfMemoryError, match=r"one completion in each row.*max_new_tokens"):
        scorer.score(GROUPS, 1.0)


def test_a_row_without_groups_is_two_tokens():
    assert build()[0].pack([]).targets.tolist() == [0]
