"""Histories of episodes: what each answer followed is what the packed row shows it."""

from __future__ import annotations

import random

import pytest
import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.rollout.history import History, tree_of_histories


def packed(prompt: list[int], histories: list[History]) -> list[tuple[list[int], int]]:
    """(ids before it, id) of every sampled token, in order, read off the row that their group is packed in."""
    shared, tree = tree_of_histories(torch.tensor(prompt), histories)
    own = tree.token_ids[tree.sampled]
    lengths = torch.bincount(tree.completions.repeat_interleave(tree.sizes)[tree.sampled])
    nothing = torch.zeros(len(own))
    group = PromptGroup(
        shared, own, lengths, nothing, nothing.long(), nothing[: len(lengths)], nothing[: len(lengths)], nothing
    )
    row = pack([PromptGroup(*(getattr(group, name) for name in group.__slots__[:-1]), tree=tree)])
    paths = []
    for runs in row.layouts[0].sequences:
        places = [row.layouts[0].starts[run] + place for run in runs for place in range(row.layouts[0].sizes[run])]
        paths.append(row.input_ids[places].tolist())
    read = zip(
        row.sequences.tolist(), row.position_ids[row.score_positions].tolist(), row.targets.tolist(), strict=True
    )
    return [(paths[sequence][: position + 1], target) for sequence, position, target in read]


def test_ids_that_are_only_appended_are_one_run() -> None:
    history = History(torch.tensor([1, 2]))
    history.append([10, 11], sampled=True)
    history.append([90, 91], sampled=False)
    history.append([12], sampled=True)
    assert history.ids.tolist() == [1, 2, 10, 11, 90, 91, 12]
    assert history.runs(2) == [(-1, [10, 11, 90, 91, 12], [True, True, False, False, True])]
    assert (history.rewrites, history.shared) == (0, 2)


def test_a_rewritten_history_keeps_what_both_share() -> None:
    history = History(torch.tensor([1, 2]))
    history.append([10, 11, 12], sampled=True)
    history.rewrite([1, 2, 10, 93, 94])  # 11 and 12, a thought, are left out
    history.append([13], sampled=True)
    assert history.ids.tolist() == [1, 2, 10, 93, 94, 13]
    assert history.runs(2) == [
        (-1, [10], [True]),
        (0, [11, 12], [True, True]),
        (0, [93, 94, 13], [False, False, True]),
    ]
    assert history.rewrites == 1


def test_a_prompt_that_goes_on_from_the_ids_so_far_rewrites_nothing() -> None:
    history = History(torch.tensor([1, 2]))
    history.append([10], sampled=True)
    history.rewrite([1, 2, 10, 93])
    assert (history.ids.tolist(), history.rewrites) == ([1, 2, 10, 93], 0)


def test_a_prompt_may_itself_be_rewritten() -> None:
    history, other = History(torch.tensor([1, 2, 3])), History(torch.tensor([1, 2, 3]))
    history.append([10], sampled=True)
    history.rewrite([1, 4])
    history.append([11], sampled=True)
    other.append([20], sampled=True)
    assert history.shared == 1
    assert packed([1, 2, 3], [history, other]) == [([1, 2, 3], 10), ([1, 4], 11), ([1, 2, 3], 20)]


def test_refuses_a_prompt_that_begins_otherwise() -> None:
    with pytest.raises(ValueError, match="begins with token 1, found"):
        History(torch.tensor([1, 2])).rewrite([5, 2])


def test_every_sampled_id_follows_what_it_was_sampled_behind() -> None:
    rng = random.Random(0)
    for _ in range(300):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        histories, expected = [], []
        for _ in range(rng.randrange(1, 4)):
            history = History(torch.tensor(prompt))
            histories.append(history)
            for turn in range(rng.randrange(1, 7)):
                before: list[int] = history.ids.tolist()
                if turn and rng.random() < 0.5:
                    kept = before[: rng.randrange(1, len(before) + 1)]
                    history.rewrite(kept + [rng.randrange(3) for _ in range(rng.randrange(3))] or before)
                elif turn:
                    history.append([rng.randrange(3) for _ in range(rng.randrange(3))], sampled=False)
                for token in [rng.randrange(3) for _ in range(rng.randrange(1, 4))]:
                    expected.append((history.ids.tolist(), token))
                    history.append([token], sampled=True)
        assert packed(prompt, histories) == expected
