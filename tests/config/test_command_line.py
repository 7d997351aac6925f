"""What a start imports: nobody waits for PyTorch who only asks for help, a config or what is wrong with one."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.config.checks import check_composed
from src.config.command_line import quick_imports, without_nulls
from src.config.rules import check_config
from tests.conftest import ROOT, train_config
from tests.wings.reporting.inspector.samples import group
from tests.wings.reporting.made_runs import write_run

PROBE = """
import json, os, runpy, sys
os.chdir(sys.argv.pop(1))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
found = [name for name in ("torch", "transformers", "lightning", "src.models.loading.loading") if name in sys.modules]
sys.stderr.write("\\nIMPORTED " + json.dumps(found))
"""


def start(*arguments: str) -> tuple[list[str], str]:
    """Heavy modules that a program imported, and what it printed."""
    run = subprocess.run([sys.executable, "-c", PROBE, str(ROOT), *arguments], capture_output=True, text=True)
    printed, _, imported = run.stderr.rpartition("\nIMPORTED ")
    return json.loads(imported), run.stdout + printed


@pytest.mark.parametrize("program", ["train", "eval", "export", "chat"])
def test_help_imports_nothing_heavy(program):
    imported, printed = start(f"src/{program}.py", "--help")
    assert imported == [] and "Powered by Hydra" in printed


def test_imports_leave_the_collector_as_it_was():
    """Jobs of a multirun come here one after the other: what the one before leaves has to be collected."""
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with samples, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "rest"):
        samples = write_run(folder, method, 1) / "rollouts.jsonl"
        samples.write_text("".join(json.dumps(one) + "\n" for one in group()))
    return folder


@pytest.mark.parametrize("program", ["compare", "report", "inspect_rollouts"])
def test_what_only_reads_runs_works_without_pytorch(program, runs, tmp_path):
    which = f"run={runs}/rest-1" if program == "inspect_rollouts" else f"runs=[{runs}]"
    imported, printed = start(f"src/{program}.py", which, f"hydra.run.dir={tmp_path}")
    assert imported == [], printed
    assert "Error" not in printed
    assert program == "inspect_rollouts" or list(runs.rglob("*.png"))


def test_what_is_wrong_with_a_key_is_said_before_pytorch_is_imported(tmp_path):
    """Once a check of another config has kept the signatures of targets."""
    check_composed(train_config(tmp_path), "train.yaml")
    settings = (f"paths.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run")
    imported, printed = start("src/train.py", *settings, "+updates.rolout_steps=3")
    assert imported == [] and "updates.rolout_steps: no such key" in printed
    imported, printed = start("src/train.py", *settings, "updates.rollout_steps=three")
    assert imported == [] and "updates.rollout_steps: expected an integer, found 'three'." in printed


@pytest.mark.slow
def test_a_plan_of_memory_loads_neither_lightning_nor_a_model(tmp_path):
    """Once a first start has kept signatures and traces of memory."""
    settings = (f"paths.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run")
    settings = (f"paths.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run")

    def plan() -> tuple[list[str], list[str]]:
        imported, printed = start("src/train.py", *settings, "dry_run=true")
        return imported, [line for line in printed.splitlines() if line.startswith(("weights", "layers", "sampling"))]

    first, again = plan(), plan()
    assert again == (["torch", "transformers"], first[1]) and again[1]


@pytest.mark.parametrize("group", ["warm_start", "debug", "policy/lora", "logger", "benchmark", "hparams_search"])
def test_any_optional_group_can_be_null(group):
    config = train_config(Path(), *without_nulls([f"{group}=null"]))
    check_config(config)
    assert not OmegaConf.select(config, group.replace("/", "."))
