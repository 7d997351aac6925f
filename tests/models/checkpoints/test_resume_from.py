"""`ckpt_path`: the newest checkpoint that is whole, wherever the last kill or the disk has left one."""

import logging
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.errors import ConfigError
from src.models.checkpoints import resume_from as module
from src.models.checkpoints.reading import Progress
from src.models.checkpoints.resume_from import Found, newest_whole, resume_from


def save(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"rollout_step": step, "global_step": 2 * step, "state_dict": {"w": torch.arange(999.0)}}, path)
    return path


def damage(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    start = content.index(torch.arange(999.0).numpy().tobytes())
    content[start + 5] ^= 4
    path.write_bytes(content)
    return path


def run_config(folder: Path, ckpt_path: str | None):
    return OmegaConf.create({"ckpt_path": ckpt_path, "paths": {"output_dir": str(folder)}, "trainer": {}})


def test_the_newest_by_rollout_step_whatever_its_name_and_age(tmp_path, caplog):
    assert newest_whole(tmp_path) is None and newest_whole(tmp_path / "no") is None
    save(tmp_path / "best.ckpt", 7)
    save(tmp_path / "last.ckpt", 6)
    os.utime(tmp_path / "best.ckpt", (0, 0))
    found = newest_whole(tmp_path)
    assert (found.path.name, found.progress.rollout_steps, found.progress.optimizer_steps) == ("best.ckpt", 7, 14)
    save(tmp_path / "last.ckpt", 7)
    assert newest_whole(tmp_path).path.name == "last.ckpt"
    save(tmp_path / "last.ckpt.partial", 8)  # whole: the kill came before it was renamed
    assert newest_whole(tmp_path).path.name == "last.ckpt.partial"
    assert caplog.text == ""


def test_one_warning_names_what_is_damaged_and_what_is_taken(tmp_path, caplog):
    damage(save(tmp_path / "last.ckpt", 8))
    save(tmp_path / "last.ckpt.partial", 9)
    os.truncate(tmp_path / "last.ckpt.partial", 3000)
    save(tmp_path / "previous.ckpt", 7)
    damage(save(tmp_path / "best.ckpt", 5))  # older: not even looked at
    assert newest_whole(tmp_path).path.name == "previous.ckpt"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in (
        "last.ckpt.partial' is damaged: it is no whole file",
        "last.ckpt' is damaged: the checksum of 'last/data",
    ):
        assert part in record.message
    assert record.message.endswith(f"whole, '{tmp_path / 'previous.ckpt'}'.") and "best" not in record.message


def test_without_a_whole_one_it_is_an_error_but_for_a_first_one_that_was_cut_off(tmp_path, caplog):
    save(tmp_path / "last.ckpt.partial", 1)
    os.truncate(tmp_path / "last.ckpt.partial", 100)
    assert newest_whole(tmp_path) is None
    assert "It was the first of this run." in caplog.text
    damage(save(tmp_path / "last.ckpt", 1))
    with pytest.raises(
        ConfigError, match=r"expected a whole checkpoint in '.*', found none: .*Remove them to start anew"
    ):
        newest_whole(tmp_path)


def test_auto_looks_in_this_run_folder_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = run_config(tmp_path / "now", "auto")
    save(tmp_path / "same/checkpoints/last.ckpt", 4)
    assert resume_from(config) is None and "a new run" in caplog.text
    own = save(tmp_path / "now/checkpoints/last.ckpt", 2)
    assert resume_from(config).path == own
    assert f"going on from '{own}', 2 rollout steps done" in caplog.text


def test_a_path_is_a_checkpoint_or_a_run_folder_and_must_be_whole(tmp_path):
    last, previous = (
        save(tmp_path / "run/checkpoints/last.ckpt", 4),
        save(tmp_path / "run/checkpoints/previous.ckpt", 3),
    )
    assert resume_from(run_config(tmp_path / "new", None)) is None
    assert resume_from(run_config(tmp_path / "new", str(previous))).path == previous
    assert resume_from(run_config(tmp_path / "new", str(tmp_path / "run"))).path == last
    damage(last)
    with pytest.raises(ConfigError, match=rf"last.ckpt' is damaged: the checksum .* beside it: ckpt_path={previous}"):
        resume_from(run_config(tmp_path / "new", str(last)))
    with pytest.raises(ConfigError, match=r"a run folder, 'auto' or null, found no such file or folder"):
        resume_from(run_config(tmp_path / "new", "no.ckpt"))
    with pytest.raises(ConfigError, match=r"found a folder without .metadata"):
        resume_from(run_config(tmp_path / "new", str(tmp_path)))
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ConfigError, match=r"foreign.ckpt': expected the keys rollout_step and global_step"):
        resume_from(run_config(tmp_path / "new", str(tmp_path / "foreign.ckpt")))


def test_shards_need_a_sharded_strategy(tmp_path, monkeypatch):
    whole = Found(tmp_path / "last.ckpt", Progress(3, 6))
    whole.path.mkdir()
    monkeypatch.setattr(module, "newest_whole", lambda folder: whole)
    config = run_config(tmp_path, "auto")
    with pytest.raises(ConfigError, match=r"last.ckpt': a folder of shards, .*trainer=fsdp_cpu without GPUs"):
        resume_from(config)
    config.trainer.strategy = {"_target_": "src.models.loading.sharding.ShardedStrategy"}
    assert resume_from(config) == whole
