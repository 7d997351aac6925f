"""A trial on its own: how it is started, watched and cancelled, and one that really trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from src.wings.sweeping import trial_run
from src.wings.sweeping.study import STUDY
from src.wings.sweeping.trial_run import Launch, Watch, cancel_jobs, final_value
from tests.conftest import ROOT, SMALL

CLIP = "algorithm.loss.clip_high"


def test_a_trial_here_is_a_plain_run_that_goes_on():
    command = Launch(Path("src/train.py"), ["seed=2"], threads=1).command(Path("F/trials/003"), {CLIP: 0.25})
    assert command[1:] == [
        *("src/train.py", "seed=2", f"{CLIP}=0.25", "ckpt_path=auto", "hydra.mode=RUN", "hydra.run.dir='F/trials/003'"),
    ]


def test_a_trial_as_a_cluster_job_is_a_multirun_of_one():
    made = Launch(Path("src/train.py"), ["seed=2"], launcher=["hydra/launcher=slurm"])
    command = made.command(Path("F/trials/003"), {CLIP: 0.25})
    assert command[2] == "hydra.mode=MULTIRUN" and "BasicSweeper" in command[4]
    assert command[5:] == [
        *("hydra/launcher=slurm", "seed=2", f"{CLIP}=0.25", "ckpt_path=auto", "hydra.sweep.dir='F/trials'"),
        *("hydra.sweep.subdir='003'", "hydra.launcher.submitit_folder='F/trials/003/.submitit/%j'"),
    ]


def test_jobs_of_a_trial_are_cancelled(tmp_path, monkeypatch):
    for name in ("17_0", "17_1", "%j"):
        (tmp_path / ".submitit" / name).mkdir(parents=True)
    asked: list[list[str]] = []
    monkeypatch.setattr(trial_run.shutil, "which", lambda name: f"bin/{name}")
    monkeypatch.setattr(trial_run.subprocess, "run", lambda command, check: asked.append(command))
    cancel_jobs(tmp_path)
    assert [sorted(command) for command in asked] == [["17_0", "17_1", "scancel"]]


def test_metrics_are_watched_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    watch = Watch(path, "m", window=2)
    assert list(watch.news()) == []
    lines = [json.dumps({"event": "rollout_step", "rollout_step": step, "m": float(step)}) + "\n" for step in range(5)]
    path.write_text(json.dumps({"event": "validation", "rollout_step": 0}) + "\n" + "".join(lines[:2]) + lines[2][:9])
    assert list(watch.news()) == [(1, 0.5)]  # half a line waits
    with path.open("a") as file:
        file.write(lines[2][9:])
    assert list(watch.news()) == [(2, 1.5)]
    path.write_text("".join(lines[:1]))  # the run starts anew: no step is told twice
    assert list(watch.news()) == []
    path.write_text("".join(lines))
    assert list(watch.news()) == [(3, 2.5), (4, 3.5)]


@pytest.mark.slow
def test_a_trial_is_a_training(tmp_path):
    """The command of `make sweep`, small; nothing but the sweeper is told that it is searched."""
    small = [text for text in SMALL if not text.startswith(("hydra.", "paths."))]
    given = [*small, "updates.rollout_steps=2", "hydra.sweeper.n_trials=1"]
    own = ["hydra.sweeper.window=1", "hydra.sweeper.parallel=1", f"hydra.sweep.dir={tmp_path}"]
    command = [sys.executable, "src/train.py", "-m", "hparams_search=tiny", *given, *own]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PROJECT_ROOT": str(ROOT)}, check=True)
    (trial,) = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / STUDY}").trials
    assert trial.value == final_value(tmp_path / "trials/000", "val/exact_match")
    assert sorted(trial.intermediate_values) == [0, 1]
    assert (tmp_path / "sweep.md").is_file() and (tmp_path / "multirun.yaml").is_file()
