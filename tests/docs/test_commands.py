"""Every command of README and docs/ could be run as it stands, or is on a list that says why no test looks at it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.runs.config_file import save_config
from tests.conftest import ROOT, train_config
from tests.docs.command_checks import NOT_RUN, RUNS, fault
from tests.docs.pages import PAGES, blocks, commands, mentioned
from tests.docs.test_examples import PAGES as WITH_FILES
from tests.docs.test_examples import copy_of_the_project, lay_over

README = {ROOT / "README.md"}


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands expect to find: a folder, and run folders as far as they are looked into before weights are."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "FOLDER").mkdir()
    for name in RUNS:
        run = folder / name
        (run / "checkpoints").mkdir(parents=True)
        save_config(train_config(run), run / "config.yaml")
        for checkpoint in ("best", "last"):
            (run / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return folder


@pytest.fixture(autouse=True)
def there(readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(readers_folder)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))
    yield


@pytest.mark.parametrize(
    "pages", [README, pytest.param(set(PAGES) - README, marks=pytest.mark.slow)], ids=["README", "docs"]
)
def test_every_command_can_be_run(pages: set[Path], tmp_path: Path) -> None:
    """Each once, wherever it stands; of a page that brings files, over a copy of the project that has them."""
    found = {}
    for page in sorted(pages):
        configs = None
        if page.name in WITH_FILES:
            copy_of_the_project(tmp_path / page.stem)
            for block in blocks(page):
                lay_over(block, tmp_path / page.stem)
            configs = tmp_path / page.stem / "configs"
        found |= {(one.words, configs): one for one in (*mentioned(page), *commands(page))}
    faults = [f"{one.where}\n    {said}" for (words, configs), one in found.items() if (said := fault(words, configs))]
    assert not faults, "\n".join(("commands that cannot be run as they stand:", *faults))


def test_every_reason_is_of_a_command() -> None:
    texts = [" ".join(one.words) for page in PAGES for one in (*commands(page), *mentioned(page))]
    assert not [pattern for pattern in NOT_RUN if not any(re.match(pattern, text) for text in texts)]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python src/train.py updates.rollout_step=3", "rollout_step"),
        ("python src/train.py experiment=qwen4_8b", "qwen4_8b"),
        ("python src/train.py data.prompts_per_step=10", "updates.prompts_per_minibatch"),
        ("python src/train.py -m algorithm=grpo,reest", None),
        ("python src/train.py -m algorithm=reest,grpo", "reest"),
        ("python src/train.py -m hparams_search=compare algorithm=rest seed=7", None),
        ("python src/train.py -m 'algorithm.loss.clip_high=interval(-1, 0.3)'", "clip_high"),
        ("python src/trian.py", "src/trian.py"),
        ("python src/inspect_rollouts.py", "no value for run"),
        ("python src/eval.py model=logs/train/runs/<time> checkpoint=third", "checkpoint=third"),
        ("python src/eval.py benchmark=synthetic", "model, policy"),
        ("python src/eval.py … benchmark=synthetic", None),
        ("make trian", "trian"),
        ('make train ARGS="sed=3"', "sed"),
        ("make compare ARGS='algorithm=rest seed=1,2'", None),
        ("make bench ARGS=--kwick", "--kwick"),
        ("sbatch --nodes=2 docs/launch/slurm.sbatch experiment=qwen4_8b", "qwen4_8b"),
        ("docs/launch/slurm.sh", "no test looks at this"),
        ("python -m tests.faults.kil", "tests.faults.kil"),
        ("python -m tests.faults.kill --kill 3", "--kill"),
        ("pytest tests/nothing/test_it.py", "tests/nothing"),
        ("frobnicate", "no test looks at this"),
    ],
)
def test_what_is_said_of_a_command(command: str, said: str | None) -> None:
    found = fault(shlex.split(command))
    assert found is None if said is None else said in (found or "")
