"""docs/architecture.md names the core's files and all folders of src/, and the house stays within its bounds."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROOMS = ("protocol", "rewards", "algorithm", "data", "rollout", "training")
"""Folders of src/ whose own files are the core, with three files beside them."""


def sources(folder: Path = ROOT / "src") -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]


def core() -> list[Path]:
    files = [ROOT / "src" / name for name in ("train.py", "errors.py", "models/policy.py")]
    return files + [path for room in ROOMS for path in (ROOT / "src" / room).glob("*.py") if path.name != "__init__.py"]


def lines(files: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def listed() -> set[str]:
    """The files of the page's list: folders end in a slash, and names follow theirs."""
    block = re.search(r"<!-- core -->\s+```\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    found, folder = set(), ""
    for word in block[1].split():
        if word.endswith("/"):
            folder = word
        else:
            found.add(word if word.startswith("src/") else folder + word)
    return found


def test_the_core_is_listed_and_can_be_read_in_one_sitting() -> None:
    assert listed() == {path.relative_to(ROOT).as_posix() for path in core()}
    assert len(core()) <= 42
    assert lines(core()) <= 7760


def test_the_house_stays_small() -> None:
    assert len(sources()) <= 234
    assert lines(sources()) <= 41400
    folders: dict[Path, int] = {}
    for path in sources():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {folder for folder, count in folders.items() if count > 14} == set()


def test_every_room_and_wing_is_described() -> None:
    rooms = {path.parent.relative_to(ROOT).as_posix() + "/" for path in sources()} - {"src/", "src/models/"}
    described = set(re.findall(r"`(src/[\w/]+/)`", PAGE))
    missing = {room for room in rooms if not any(room.startswith(one) for one in described)}
    assert not missing


def test_constructors_of_training_name_their_arguments() -> None:
    for path in sources(ROOT / "src/training"):
        assert not re.search(r"def __init__\([^)]*\*(args|\*kwargs)", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_training_runs_without_any_wing(tmp_path: Path) -> None:
    """With the keys that the page names; the policy, its corpus and the method are the default ones."""
    (keys,) = re.findall(r"\(`(preflight[^`]*)`; a test deletes", PAGE)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("wings", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    small = "updates.rollout_steps=1 trainer.val_check_interval=1 data.limit_val=2 data.train.num_train=64 logger=csv"
    command = [sys.executable, "src/train.py", *shlex.split(keys), *small.split(), "data.train.num_val=8"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert list(tmp_path.glob("logs/train/runs/*/summary.json"))
