"""Checkpoints are told whole from damaged, whatever part is damaged, and one is always whole while another is saved."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from src.models.checkpoints import writing as saving
from src.models.checkpoints.reading import DamagedCheckpointError
from src.models.checkpoints.writing import (
    check_whole,
    file_sums,
    partial_path,
    publish,
    seal,
    settle,
)

STATE = {"state_dict": {"weight": torch.arange(3000.0), "bias": torch.arange(7.0)}, "rollout_step": 3}


@pytest.fixture
def file(tmp_path) -> Path:
    torch.save(STATE, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def write_folder(path: Path, step: int = 3) -> None:
    dcp.save({"state_dict": STATE["state_dict"]}, checkpoint_id=path, no_dist=True)
    torch.save({"rollout_step": step, "global_step": step}, path / "meta.pt")
    seal(path, [file_sums(path, 0)])


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folder(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_whole_file_is_whole_and_any_flipped_bit_of_a_tensor_is_found(file):
    check_whole(file)
    start = file.read_bytes().index(STATE["state_dict"]["weight"].numpy().tobytes())
    for position in (start, start + 6001, start + 11_999):
        flip(file, position)
        with pytest.raises(DamagedCheckpointError, match=r"the checksum of 'last/data/0' in it is wrong"):
            check_whole(file)
        flip(file, position)
    check_whole(file)


@pytest.mark.parametrize("size", [0, 1, 100, 5000, -1, -100])
def test_a_file_that_was_cut_off_is_found(file, size):
    whole = file.stat().st_size
    os.truncate(file, size if size >= 0 else whole + size)
    with pytest.raises(DamagedCheckpointError, match=r"it is no whole file of torch.save"):
        check_whole(file)


def test_no_file(tmp_path):
    with pytest.raises(DamagedCheckpointError, match="there is no such file"):
        check_whole(tmp_path / "no.ckpt")


def test_any_damage_to_a_folder_is_found(folder, tmp_path):
    check_whole(folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".metadata", "__0_0.distcp", "checksums.json", "meta.pt"]
    for name in (".metadata", "__0_0.distcp", "meta.pt"):
        for damage, message in (
            (lambda path: flip(path, path.stat().st_size // 2), rf"the checksum of '{name}' is wrong"),
            (lambda path: os.truncate(path, 10), rf"'{name}' has 10 bytes instead of \d+"),
            (Path.unlink, rf"'{name}' is missing"),
        ):
            damaged = Path(shutil.copytree(folder, tmp_path / "damaged", dirs_exist_ok=True))
            damage(damaged / name)
            with pytest.raises(DamagedCheckpointError, match=message):
                check_whole(damaged)
    for content, message in (("", "cannot be read"), ("[1]", "cannot be read"), ("{}", "has no .metadata")):
        (folder / "checksums.json").write_text(content)
        with pytest.raises(DamagedCheckpointError, match=rf"its checksums.json {message}"):
            check_whole(folder)


def test_a_folder_without_checksums_is_whole_only_under_its_name_and_if_its_metadata_says_so(folder):
    (folder / "checksums.json").unlink()
    check_whole(folder)  # of a version that had none
    partial = folder.rename(partial_path(folder))
    with pytest.raises(DamagedCheckpointError, match=r"no checksums.json, which is written last"):
        check_whole(partial)
    os.truncate(partial.rename(folder) / "__0_0.distcp", 100)
    with pytest.raises(DamagedCheckpointError, match=r"'__0_0.distcp' has 100 bytes, expected at least"):
        check_whole(folder)


def test_each_rank_sums_its_own_files(folder):
    shutil.copy(folder / "__0_0.distcp", folder / "__12_0.distcp")
    assert set(file_sums(folder, 12)) == {"__12_0.distcp"}
    assert set(file_sums(folder, 0)) == {".metadata", "__0_0.distcp", "meta.pt"}
    assert file_sums(folder, 1) == {}
    assert json.loads((folder / "checksums.json").read_text()).keys() == {".metadata", "__0_0.distcp", "meta.pt"}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("previous", [None, "previous.ckpt"])
def test_a_kill_while_it_is_published_leaves_the_old_or_the_new_one_whole(kind, previous, tmp_path, monkeypatch):
    class Killed(BaseException): ...

    def write(path: Path, step: int) -> None:
        if kind == "file":
            torch.save({"rollout_step": step}, path)
        else:
            write_folder(path, step)

    def steps() -> dict[str, int]:
        found = {}
        for path in tmp_path.iterdir():
            check_whole(path)
            content = torch.load(path if path.is_file() else path / "meta.pt", weights_only=True)
            found[path.name] = content["rollout_step"]
        return found

    path, partial = tmp_path / "last.ckpt", tmp_path / "last.ckpt.partial"
    aside = None if previous is None else tmp_path / previous
    write(path, 1)
    write(partial, 2)
    with monkeypatch.context() as patch:
        patch.setattr(saving.os, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            publish(partial, path, aside)
    left = steps()
    assert left["last.ckpt.partial"] == 2 and 1 in left.values()
    publish(partial, path, aside)
    assert steps()["last.ckpt"] == 2 and "last.ckpt.partial" not in steps()
    write(partial, 3)
    publish(partial, path, aside)
    assert steps() == ({"last.ckpt": 3} if previous is None else {"last.ckpt": 3, "previous.ckpt": 2})


def test_what_a_kill_left_under_way_is_ended(tmp_path):
    for name, step in (
        ("best.ckpt.partial", 4),
        ("best.ckpt.replaced", 2),
        ("last.ckpt", 3),
        ("last.ckpt.replaced", 1),
    ):
        torch.save(step, tmp_path / name)
    settle(tmp_path, tmp_path / "best.ckpt.partial")
    assert {path.name: torch.load(path) for path in tmp_path.iterdir()} == {"best.ckpt": 4, "last.ckpt": 3}
    (tmp_path / "best.ckpt").rename(tmp_path / "best.ckpt.replaced")
    settle(tmp_path, tmp_path / "last.ckpt")
    assert {path.name: torch.load(path) for path in tmp_path.iterdir()} == {"best.ckpt": 4, "last.ckpt": 3}
