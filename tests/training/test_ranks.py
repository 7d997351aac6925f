"""Shares of a batch by hand, and two real processes that add, compare and collect."""

import json
from pathlib import Path

import pytest
import torch

from src.training.ranks import Ranks
from tests.benchmarks.lock_step import BOUNDS, simulate


def test_alone_everything_is_its_own():
    ranks = Ranks()
    values = torch.tensor([1.0, -2.0])
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.sum(values) is values and ranks.max(values) is values and ranks.min(values) is values
    assert ranks.gather("a") == ["a"]
    assert ranks.share([5, 1, 1, 9], per_minibatch=3) == ([0, 1, 2, 3], [3, 1])
    assert ranks.redistribute(["a", "b", "c"], [5, 1, 9], [2, 1], max_row_tokens=4) == (["a", "b", "c"], [2, 1])


def test_a_minibatch_is_divided_by_cost_and_what_ranks_carry_already(monkeypatch):
    """Two ranks, minibatches of three. The first: 9 | 4 + 3. The second, of 6, 6, 1: 6 and 1 go where less is (9 + 6
    and 7 + 6 + 1): the first 6 to rank 1, which carries 7 against 9, the second to rank 0, and 1 to rank 1."""
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(Ranks, "size", 2)
        monkeypatch.setattr(Ranks, "rank", rank)
        shares.append(Ranks().share([9, 4, 3, 6, 6, 1], per_minibatch=3))
    assert shares[0] == ([0, 4], [1, 1])
    assert shares[1] == ([1, 2, 3, 5], [2, 2])


HELD = ([9, 8, 7, 3], [5, 4, 2])
"""What the items of two ranks cost. In the first minibatch are 9, 8, 7 and 5, 4, 2; in the second 3."""
MINIBATCHES = ([3, 1], [3, 0])


def test_only_what_changes_ranks_is_sent(monkeypatch):
    """First minibatch, rows of at most 12: 9 | 7 + 2 | 5 + 4 | 8; rank 0 gets 9 and 5 + 4, rank 1 7 + 2 and 8
    (`packing.deal`). The second: 3 goes to rank 1, which carries 17 against 18."""
    sent = []
    monkeypatch.setattr(Ranks, "size", 2)
    monkeypatch.setattr(Ranks, "gather", lambda *_: [[[9, 8, 7], [3]], [[5, 4, 2], []]])
    monkeypatch.setattr(Ranks, "_exchange", lambda _, values: sent.append(values) or values)
    for rank in (0, 1):
        monkeypatch.setattr(Ranks, "rank", rank)
        Ranks().redistribute([f"of {cost}" for cost in HELD[rank]], HELD[rank], MINIBATCHES[rank], max_row_tokens=12)
    assert sent[0] == [[["of 9"], []], [["of 8", "of 7"], ["of 3"]]]
    assert sent[1] == [[["of 5", "of 4"], []], [["of 2"], []]]


@pytest.mark.parametrize("mean", BOUNDS)
def test_ranks_hardly_wait_for_each_other(mean):
    """Eight ranks, 512 prompts x 8 as in the published experiments: see `tests.benchmarks.lock_step`."""
    for seed in range(3):
        found = simulate(mean, seed)
        assert 1 <= found.after <= BOUNDS[mean] < found.before
        assert 1 <= found.total <= 1.05  # where ranks wait at the end of a minibatch alone


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks()
    own = torch.tensor([float(rank), 3.0 - rank], dtype=torch.float64)
    found = [ranks.sum(own).tolist(), ranks.max(own).tolist(), ranks.min(own).tolist(), ranks.gather(f"rank {rank}")]
    found += [own.tolist(), [ranks.rank, ranks.size]]
    tensors = torch.arange(1000.0).split(1)  # views: what travels is not all of what they are views of
    items = [{"cost": cost, "tensor": tensors[cost], "none": tensors[0][:0]} for cost in HELD[rank]]
    shared, minibatches = ranks.redistribute(items, HELD[rank], MINIBATCHES[rank], max_row_tokens=12)
    found.append([[[item["cost"], item["tensor"].tolist(), len(item["none"])] for item in shared], minibatches])
    found.append([item["tensor"].untyped_storage().nbytes() for item in shared])
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_add_compare_and_collect(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        sums, most, least, gathered, own, place, (shared, minibatches), stored = found
        assert (sums, most, least) == ([1.0, 5.0], [1.0, 3.0], [0.0, 2.0])
        assert gathered == ["rank 0", "rank 1"]
        assert own == [float(rank), 3.0 - rank] and place == [rank, 2]  # the argument is left as it was
        costs = ([9, 5, 4], [8, 7, 2, 3])[rank]  # see `test_only_what_changes_ranks_is_sent`
        assert shared == [[cost, [float(cost)], 0] for cost in costs]
        assert minibatches == ([3, 0], [3, 1])[rank]
        assert stored == ([4000, 4, 4], [4, 4, 4000, 4])[rank]  # bytes
