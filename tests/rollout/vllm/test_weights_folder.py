"""Versions of weights on disk: complete or absent, sharded, tied weights twice."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.rollout.vllm.weights_folder import WeightsFolder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.iterdir()) for name, tensor in load_file(file).items()}


def test_shards_hold_all_tensors_in_the_given_type(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path / "new", torch.bfloat16, shard_bytes=100)
    embeddings = torch.randn(4, 8)
    named = {"embed": embeddings, "norm": torch.ones(8), "big": torch.randn(30, 8).T, "lm_head": embeddings}
    path = folder.write(named.items(), 2)
    assert path == folder.path(2)
    # 64 + 16 bytes, then 480 alone, then 64
    assert [sorted(load_file(file)) for file in sorted(path.iterdir())] == [["embed", "norm"], ["big"], ["lm_head"]]
    found = read(path)
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in named.items())


def test_a_version_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path, torch.float32, shard_bytes=10)
    folder.write([("a", torch.zeros(4))], 1)

    def broken():
        yield "a", torch.ones(4)
        yield "b", torch.ones(4)
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        folder.write(broken(), 2)
    assert not folder.path(2).exists()
    folder.write([("a", torch.ones(4))], 2)
    folder.write([("a", torch.full((4,), 3.0))], 2)
    assert read(folder.path(2))["a"].tolist() == [3.0] * 4
    folder.keep_only(2)
    assert [path.name for path in tmp_path.iterdir()] == ["version_2"]
