"""Shares of a batch by hand, and two real processes that add, compare and collect."""

import json
from pathlib import Path

import pytest
import torch

from src.training.ranks import Ranks


def test_alone_everything_is_its_own():
    ranks = Ranks()
    values = torch.tensor([1.0, -2.0])
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.sum(values) is values and ranks.max(values) is values and ranks.min(values) is values
    assert ranks.gather("a") == ["a"]
    assert ranks.share([5, 1, 1, 9], per_minibatch=3) == ([0, 1, 2, 3], [3, 1])


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


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks()
    own = torch.tensor([float(rank), 3.0 - rank], dtype=torch.float64)
    found = [ranks.sum(own).tolist(), ranks.max(own).tolist(), ranks.min(own).tolist(), ranks.gather(f"rank {rank}")]
    found += [own.tolist(), [ranks.rank, ranks.size]]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_add_compare_and_collect(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        sums, most, least, gathered, own, place = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (sums, most, least) == ([1.0, 5.0], [1.0, 3.0], [0.0, 2.0])
        assert gathered == ["rank 0", "rank 1"]
        assert own == [float(rank), 3.0 - rank] and place == [rank, 2]  # the argument is left as it was
