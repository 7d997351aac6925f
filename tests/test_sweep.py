"""Sweeps: the default first, trials pruned, cut off and taken up again; what comes out; the searches in configs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from src.evaluation.records import write_whole
from src.sweep import SweepError, sweep
from src.sweeping import trials
from src.sweeping.settings import defaults, distributions
from src.sweeping.study import DEFAULT, FOLDER, STUDY, ask, held
from src.sweeping.trials import CONSOLE, Launch, Watch, cancel_jobs, final_value
from src.utils.config_checks import ConfigError, check_config
from src.utils.config_keys import CONFIGS
from tests.conftest import ROOT, SMALL, train_config
from tests.sweeping.sweep_with_fake import fake_sweep

CLIP = "algorithm.loss.clip_high"
SEARCHES = {"tiny": None, "qwen3_8b": "Qwen/Qwen3-8B", "llama3_2_3b": "meta-llama/Llama-3.2-3B-Instruct"}


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STUDY}").trials


def test_the_default_is_the_first_trial_and_all_are_in_the_table(tmp_path):
    study = fake_sweep(tmp_path, "sweep.n_trials=4", "sweep.pruner=null", "sweep.parallel=2")
    first, *others = study.trials
    assert first.user_attrs[DEFAULT] and first.params[CLIP] == 0.2 and first.value == pytest.approx(0.9)
    assert len({trial.params[CLIP] for trial in study.trials}) == 4
    assert study.best_value >= first.value
    record = json.loads((tmp_path / "sweep.json").read_text())
    values = [trial["value"] for trial in record["trials"]]
    assert values == sorted(values, reverse=True) and len(values) == 4
    assert values == pytest.approx([1 - abs(t["parameters"][CLIP] - 0.3) for t in record["trials"]])
    assert sum(record["importances"].values()) == pytest.approx(1) and set(record["importances"]) == set(first.params)
    table = (tmp_path / "sweep.md").read_text()
    assert "0 (default)" in table and f"{CLIP}={study.best_params[CLIP]}" in table and "](importance.png)" in table
    assert (tmp_path / "importance.png").stat().st_size > 10_000
    assert all((tmp_path / trial.user_attrs[FOLDER] / "summary.json").is_file() for trial in others)


def test_what_is_behind_the_median_ends_early(tmp_path):
    """What is worse than the default never ends by itself, and so no trial that has ended is."""
    pruner = "sweep.pruner={_target_: optuna.pruners.MedianPruner, n_startup_trials: 1, n_warmup_steps: 5}"
    study = fake_sweep(
        tmp_path, "sweep.n_trials=4", "sweep.parallel=1", "sweep.seed=3", pruner, launch=Launch(["hang=1"])
    )
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    behind = [trial for trial in pruned if trial.params[CLIP] < 0.2]
    assert behind and len(pruned) + len(complete) == 4 and all(trial.params[CLIP] >= 0.2 for trial in complete)
    for trial in behind:
        assert 5 <= trial.last_step < 9 and not (tmp_path / trial.user_attrs[FOLDER] / "summary.json").exists()
    assert f"pruned after {behind[0].last_step + 1} steps" in (tmp_path / "sweep.md").read_text()


def test_a_trial_that_was_cut_off_is_tried_again_in_its_folder(tmp_path):
    """As after a kill: one trial still counts as running, another finished while nobody looked."""
    study = fake_sweep(tmp_path, "sweep.n_trials=2")
    before = [(trial.number, trial.value) for trial in study.trials]
    space = study.trials[0].distributions
    cut, unseen = ask(study, space), ask(study, space)
    finished = tmp_path / unseen.user_attrs[FOLDER]
    finished.mkdir()
    write_whole(finished / "summary.json", json.dumps({"final": {"val/exact_match": 0.123}}))
    study = fake_sweep(tmp_path, "sweep.n_trials=5")
    assert [(trial.number, trial.value) for trial in study.trials[:2]] == before
    assert [trial.state.name for trial in study.trials[2:4]] == ["FAIL", "FAIL"]
    for trial, again in zip((cut, unseen), study.trials[4:6], strict=True):
        assert again.params == trial.params and again.user_attrs[FOLDER] == trial.user_attrs[FOLDER]
    assert study.trials[5].value == 0.123 and not (finished / "starts").exists()
    assert len([trial for trial in study.trials if trial.value is not None]) == 5
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 5  # a second start draws anew


@pytest.mark.slow
def test_a_kill_loses_no_finished_trial(tmp_path):
    command = [sys.executable, "-m", "tests.sweeping.sweep_with_fake", str(tmp_path), "6", "0.15"]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("trials/*/summary.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    while not (running := [p for p in tmp_path.glob("trials/*") if not (p / "summary.json").exists()]):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert not list(running[0].glob("summary.json"))
    lines = (running[0] / "metrics.jsonl").read_text()
    before = {trial.number: trial.value for trial in stored(tmp_path) if trial.state.is_finished()}
    assert len(before) >= 1
    time.sleep(0.5)
    assert (running[0] / "metrics.jsonl").read_text() == lines  # its trials died with it
    subprocess.run(command, cwd=ROOT, check=True)
    after = stored(tmp_path)
    assert {number: after[number].value for number in before} == before
    counted = [trial for trial in after if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(counted) == 6 and {trial.user_attrs[FOLDER] for trial in counted} >= {f"trials/{running[0].name}"}


def test_runs_that_fail_end_the_sweep_in_the_end(tmp_path):
    with pytest.raises(SweepError, match=r"max_failures=1 runs ended with an error.*console.log"):
        fake_sweep(tmp_path, "sweep.max_failures=1", "sweep.parallel=1", launch=Launch(["fail=1"]))
    assert "no such luck" in (tmp_path / "trials/000" / CONSOLE).read_text()
    study = fake_sweep(tmp_path, "sweep.max_failures=2", "sweep.n_trials=1")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE"]


def test_another_sweep_does_not_go_on_in_the_folder(tmp_path):
    fake_sweep(tmp_path, "sweep.n_trials=1")
    fake_sweep(tmp_path, "sweep.n_trials=1", "sweep.parallel=1")
    with pytest.raises(ConfigError, match=r"differs from the one that began there: seed was 1, is 2\. Give the same"):
        fake_sweep(tmp_path, "sweep.n_trials=1", "seed=2")
    with held(tmp_path), pytest.raises(ConfigError, match="another sweep is running in"):
        fake_sweep(tmp_path, "sweep.n_trials=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sweep=null"],
            r"sweep: expected a search, found none. Set hparams_search=NAME, one of co",
        ),
        (["optimized_metric=null"], r"optimized_metric: expected the metric that is to be maximised, found null"),
        (["algorithm.loss.clip_high=0.5"], r"clip_high: expected to hold the default, 0.5, .* found 0.1 to 0.4. Widen"),
        (
            ["+sweep.space.updates.pases='range(1,3)'"],
            r"space.updates.pases: expected a key of the config that has",
        ),
        (
            ["+sweep.space.seed=7"],
            r"space.seed: expected e.g. interval\(0.1, 0.4\), .* one value is nothing to se",
        ),
        (["sweep.parallel=0"], r"sweep.parallel: expected at least 1, found 0"),
        (["sweep.n_trial=3"], r"n_trial"),
    ],
)
def test_what_cannot_be_searched_is_said(overrides, message, tmp_path):
    with pytest.raises(Exception, match=message):  # of Hydra: a misspelt key
        fake_sweep(tmp_path, *overrides)
    assert not (tmp_path / "trials").exists()


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_share_the_space_and_hold_their_defaults(name, tmp_path):
    config = train_config(tmp_path, f"hparams_search={name}", "dry_run=true")
    check_config(config)
    space = distributions(config.sweep.space)
    assert set(space) == set(distributions(train_config(tmp_path, "hparams_search=tiny").sweep.space))
    assert len(space) == 8 and config.algorithm.loss.clip_low == config.algorithm.loss.clip_high
    assert defaults(config, space)["algorithm.weighting.factors.tool_name"] == 1.2
    assert config.policy.get("hub_id") == SEARCHES[name]


def test_every_search_is_tested():
    assert {path.stem for path in (CONFIGS / "hparams_search").glob("*.yaml")} == {*SEARCHES, "rest", "compare"}


def test_a_trial_as_a_cluster_job_is_a_multirun_of_one():
    command = Launch(["seed=2"], launcher=["hydra/launcher=slurm"]).command(Path("F/trials/003"), {CLIP: 0.25})
    assert command[2:] == [
        *("-m", "hydra/launcher=slurm", "seed=2", f"{CLIP}=0.25", "ckpt_path=auto", "hydra.sweep.dir='F/trials'"),
        *("hydra.sweep.subdir='003'", "hydra.launcher.submitit_folder='F/trials/003/.submitit/%j'"),
    ]


def test_jobs_of_a_trial_are_cancelled(tmp_path, monkeypatch):
    for name in ("17_0", "17_1", "%j"):
        (tmp_path / ".submitit" / name).mkdir(parents=True)
    asked: list[list[str]] = []
    monkeypatch.setattr(trials.shutil, "which", lambda name: f"bin/{name}")
    monkeypatch.setattr(trials.subprocess, "run", lambda command, check: asked.append(command))
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
    small = [*SMALL, "updates.rollout_steps=2", "trainer.val_check_interval=2", "data.train.num_val=20"]
    config = train_config(tmp_path, "hparams_search=tiny", *small, "sweep.n_trials=1", "sweep.window=1")
    study = sweep(config, Launch(["hparams_search=tiny", *small, "sweep.n_trials=1", "sweep.window=1"], threads=1))
    (trial,) = study.trials
    assert trial.value == final_value(tmp_path / "trials/000", "val/exact_match")
    assert sorted(trial.intermediate_values) == [0, 1]
