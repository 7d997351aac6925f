"""A run leaves no key, no token and no home folder of who trains behind, and nothing that others may change."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from src.runs.config_file import HideHome, load_config, save_config, without_home
from src.runs.folder import open_run_folder
from src.train import train
from tests.conftest import ROOT, SMALL, train_config

CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 7,
    "HF_TOKEN": "hf_canaryCanaryCanaryCanary",
    "HUGGING_FACE_HUB_TOKEN": "hf_otherCanaryOtherCanary",
    "OPENAI_API_KEY": "sk-canary-canary-canary",
    "AWS_SECRET_ACCESS_KEY": "aws/canary/canary/canary",
}


def told(files: list[Path], home: Path) -> list[str]:
    """What files say that they must not; W&B's own logs, which stay where they are, may name the home folder."""
    hidden = CANARIES | {"the home folder": str(home)}
    return [
        f"{name} in {path}"
        for path in files
        for name, text in hidden.items()
        if text.encode() in path.read_bytes() and not (name == "the home folder" and "wandb" in path.parts)
    ]


def test_what_a_training_writes_holds_no_secret_and_no_home_folder(
    tmp_path: Path, random_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CANARIES, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    policy, run = tmp_path / "policy", tmp_path / "logs/run"
    policy.symlink_to(random_policy)
    run.mkdir(parents=True)
    train(train_config(run, *SMALL, "callbacks=hf_export", "logger=[csv,tensorboard]", f"policy.path={policy}"))
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"config.yaml", "summary.json", "last.ckpt", "metrics.jsonl", "README.md"} <= {path.name for path in files}
    assert told(files, tmp_path) == []


@pytest.mark.slow
def test_a_run_folder_holds_no_secret_and_belongs_to_its_owner(tmp_path: Path, random_policy: Path) -> None:
    """From the command line, W&B offline, under a home folder that all paths of the run are in, with an open umask."""
    home = tmp_path / "home-of-canary"
    policy, run = home / "policy", home / "logs/run"
    policy.parent.mkdir()
    policy.symlink_to(random_policy)
    small = [override for override in SMALL if not override.startswith("logger=")]
    arguments = [
        *small,
        "logger=[csv,tensorboard,wandb]",
        "callbacks=hf_export",
        f"policy.path={policy}",
        f"hydra.run.dir={run}",
    ]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_NUM_THREADS")}
    environment = {**kept, **CANARIES, "HOME": str(home), "WANDB_MODE": "offline"}
    command = f'umask 000; exec {sys.executable} src/train.py "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "train", *arguments, f"paths.cache_dir={tmp_path}/cache"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"config.yaml", "summary.json", "train.log", "last.ckpt", "metrics.jsonl"} <= {path.name for path in files}
    assert told(files, home) == []
    for path in (run, *run.rglob("*")):
        if not path.is_symlink():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022, f"{path} may be changed by others"


def test_the_folder_of_an_open_umask_is_closed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "run"
        folder.mkdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777
        open_run_folder(folder)
        (folder / "file").touch()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_stricter_umask_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        open_run_folder(tmp_path / "run")
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_config_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = train_config(Path("/home/ann/runs/1"), "policy.path=/home/ann")
    save_config(config, tmp_path / "config.yaml")
    assert "/home/ann" not in (tmp_path / "config.yaml").read_text()
    loaded = load_config(tmp_path / "config.yaml")
    assert (loaded.policy.path, loaded.paths.output_dir) == ("/home/ann", "/home/ann/runs/1")
    monkeypatch.setenv("HOME", "/home/bob")  # where it is read
    assert load_config(tmp_path / "config.yaml").paths.output_dir == "/home/bob/runs/1"


def test_a_home_folder_that_is_the_root_hides_nothing() -> None:
    assert without_home("/data/x", "/") == "/data/x"


def test_logs_have_no_home_folder(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    caplog.handler.addFilter(hide := HideHome())
    try:
        logging.getLogger("x").warning("Run folder: %s", Path("/home/ann/logs"))
    finally:
        caplog.handler.removeFilter(hide)
    assert caplog.messages == ["Run folder: ~/logs"]
