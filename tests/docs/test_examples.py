"""The examples of pages that bring files: laid over a copy of the project, with their diffs, and run as documented."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FEW_EXAMPLES, ROOT, SMALL
from tests.docs.pages import Block, Command, blocks, commands

PAGES = ("environments.md", "extending.md", "your_data.md")
RUNNER = """
import json, logging, sys
from pathlib import Path
from rich.console import Console
from tests.conftest import chat_config, eval_config, train_config
from src.wings.chatting.run import chat
from src.wings.evaluation.run import evaluate
from src.train import train
for number, (program, overrides) in enumerate(json.loads(Path("runs.json").read_text())):
    folder = Path("results") / str(number)
    folder.mkdir(parents=True)
    if program == "src/chat.py":
        with (folder / "said.txt").open("w") as said:
            chat(chat_config(folder, *overrides), ["/tools", "Put tea in the cart."], Console(file=said))
        continue
    run, compose = (train, train_config) if program == "src/train.py" else (evaluate, eval_config)
    run(compose(folder, *overrides))
"""
LEFT_BEHIND = {"src/train.py": "summary.json", "src/eval.py": "report.json", "src/chat.py": "said.txt"}
LEFT_TO_OTHERS = ("-m", "dry_run=true")
"""Commands of these pages with one of these words are a sweep, or need the hub; `test_commands` composes them."""


def copy_of_the_project(folder: Path) -> None:
    """Source, configs, and what the runner needs of the tests; nothing that runs have left."""
    folder.mkdir(exist_ok=True)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", folder)


def lay_over(block: Block, folder: Path) -> None:
    """Write a block's file, or apply it as a diff."""
    if block.file is not None:
        target = folder / block.file
        assert not (ROOT / block.file).exists(), f"{block.where}: {block.file} is part of the project already"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.content, encoding="utf-8")
    elif block.language == "diff":
        arguments = ["git", "apply", "-"]
        found = subprocess.run(arguments, cwd=folder, input=block.text, text=True, capture_output=True)
        assert found.returncode == 0, f"{block.where}: the diff does not apply: {found.stderr}"


def small(command: Command, policy: Path) -> tuple[str, list[str]]:
    """The program and its overrides, made a matter of seconds, with a model folder for what would come from the hub."""
    program, *overrides = command.words[1:]
    if program == "src/train.py":
        own_benchmarks = any(one.startswith("benchmark=") for one in overrides)
        own_data = any(one.startswith(("data=", "experiment=")) for one in overrides)
        kept = set(SMALL) - set(FEW_EXAMPLES if own_data else ())
        overrides += [one for one in SMALL if one in kept and not (own_benchmarks and one.startswith("benchmark="))]
        overrides += ["callbacks.benchmark.at_start=false", "callbacks.benchmark.subset=6"]
        overrides += ["callbacks.checkpoint=null", "sampling.max_new_tokens=24"]
        if "experiment=tiny_episodes" in overrides:
            overrides += ["environment.num_train=40", "environment.num_val=4"]
    return program, [f"policy.path={policy}" if one == "policy.path=FOLDER" else one for one in overrides]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_example_of_the_page_runs(page: str, tmp_path: Path, random_policy: Path, corpus: Path) -> None:
    path = ROOT / "docs" / page
    copy_of_the_project(tmp_path)
    for block in blocks(path):
        lay_over(block, tmp_path)
    chosen = [one for one in commands(path) if not set(one.words) & set(LEFT_TO_OTHERS)]
    assert len(chosen) >= 2
    runs = [small(one, random_policy) for one in chosen]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    for name in ("rlla_sft.json", "my_dialogues.json"):
        shutil.copy(corpus, tmp_path / name)
    environment = {**os.environ, "PROJECT_ROOT": str(tmp_path), "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    last = chosen[len(list((tmp_path / "results").glob("*"))) - 1]
    assert found.returncode == 0, f"{last.where}\n{found.stderr[-4000:]}"
    for number, command in enumerate(chosen):
        folder = tmp_path / "results" / str(number)
        assert (folder / LEFT_BEHIND[command.words[1]]).is_file(), command.where


@pytest.mark.slow
def test_the_format_of_the_page_holds_what_all_formats_do(tmp_path: Path) -> None:
    copy_of_the_project(tmp_path)
    for block in blocks(ROOT / "docs/extending.md"):
        lay_over(block, tmp_path)
    shutil.copytree(ROOT / "tests/protocol/formats", tmp_path / "tests/protocol/formats")
    shutil.copy(ROOT / "tests/protocol/__init__.py", tmp_path / "tests/protocol")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "mistral", "tests/protocol/formats/test_known.py"]
    environment = {**os.environ, "PROJECT_ROOT": str(tmp_path), "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout[-4000:]
