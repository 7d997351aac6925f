"""Sweeps by a program that fakes trainings: the default first, trials pruned, cut off and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from optuna.trial import TrialState

from src.errors import ConfigError
from src.runs.folder import held
from src.runs.line_file import write_whole
from src.wings.sweeping import sweep as module
from src.wings.sweeping.scheduler import SweepError
from src.wings.sweeping.study import DEFAULT, FOLDER, STUDY, ask
from src.wings.sweeping.sweep import sweep
from src.wings.sweeping.trial_run import CONSOLE
from tests.conftest import ROOT

CLIP = "algorithm.loss.clip_high"
FAKE = Path(__file__).with_name("fake_train.py")


def stored(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STUDY}")


@pytest.fixture
def fake_sweep(tmp_path, monkeypatch):
    """Sweeps in `tmp_path`; settings of the sweeper by keyword, other overrides as they are."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(module, "configure_log", lambda *_: None)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))

    def run(*overrides: str, **settings: object) -> optuna.Study:
        given = ["hparams_search=tiny", *(o for o in overrides if "=interval" not in o)]
        own = [f"hydra.sweeper.{key}={value}" for key, value in settings.items()] + [f"hydra.sweep.dir={tmp_path}"]
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
            config = compose("train.yaml", overrides=[*given, *own], return_hydra_config=True)
        sweep(config, ["hparams_search=tiny", *overrides], FAKE)
        return stored(tmp_path)

    return run


def test_the_default_is_the_first_trial_and_all_are_in_the_table(fake_sweep, tmp_path):
    study = fake_sweep("algorithm.loss.kl_coef=0.001", n_trials=4, pruner="null", parallel=2)
    first, *others = study.trials
    assert first.user_attrs[DEFAULT] and first.params[CLIP] == 0.2 and first.value == pytest.approx(0.9)
    assert len({trial.params[CLIP] for trial in study.trials}) == 4
    record = json.loads((tmp_path / "sweep.json").read_text())
    values = [trial["value"] for trial in record["trials"]]
    assert values == sorted(values, reverse=True) and len(values) == 4
    assert values == pytest.approx([1 - abs(t["parameters"][CLIP] - 0.3) for t in record["trials"]])
    assert sum(record["importances"].values()) == pytest.approx(1) and set(record["importances"]) == set(first.params)
    table = (tmp_path / "sweep.md").read_text()
    assert "0 (default)" in table and "](importance.png)" in table
    assert (
        f"{CLIP}={study.best_params[CLIP]}" in table and "src/fake_train.py experiment=tiny algorithm.loss.kl" in table
    )
    assert f"algorithm.loss.clip_low={study.best_params[CLIP]}" in table  # it follows
    assert (tmp_path / "importance.png").stat().st_size > 10_000
    for trial in others:
        given = json.loads((tmp_path / trial.user_attrs[FOLDER] / "argv.json").read_text())
        assert f"{CLIP}={trial.params[CLIP]}" in given and "algorithm.loss.kl_coef=0.001" in given


def test_what_is_behind_the_median_ends_early(fake_sweep, tmp_path, monkeypatch):
    """What is worse than the default never ends by itself, and so no trial that has ended is."""
    monkeypatch.setenv("FAKE_HANG", "1")
    pruner = "{_target_: optuna.pruners.MedianPruner, n_startup_trials: 1, n_warmup_steps: 5}"
    study = fake_sweep(n_trials=4, parallel=1, seed=3, pruner=pruner)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    behind = [trial for trial in pruned if trial.params[CLIP] < 0.2]
    assert behind and len(pruned) + len(complete) == 4 and all(trial.params[CLIP] >= 0.2 for trial in complete)
    for trial in behind:
        assert 5 <= trial.last_step < 9 and not (tmp_path / trial.user_attrs[FOLDER] / "summary.json").exists()
    assert f"pruned after {behind[0].last_step + 1} steps" in (tmp_path / "sweep.md").read_text()


@pytest.mark.slow
def test_a_trial_that_was_cut_off_is_tried_again_in_its_folder(fake_sweep, tmp_path):
    """As after a kill: one trial still counts as running, another finished while nobody looked."""
    study = fake_sweep(n_trials=2)
    before = [(trial.number, trial.value) for trial in study.trials]
    space = study.trials[0].distributions
    cut, unseen = ask(study, space), ask(study, space)
    finished = tmp_path / unseen.user_attrs[FOLDER]
    finished.mkdir()
    write_whole(finished / "summary.json", json.dumps({"final": {"val/exact_match": 0.123}}))
    study = fake_sweep(n_trials=5)
    assert [(trial.number, trial.value) for trial in study.trials[:2]] == before
    assert [trial.state.name for trial in study.trials[2:4]] == ["FAIL", "FAIL"]
    for trial, again in zip((cut, unseen), study.trials[4:6], strict=True):
        assert again.params == trial.params and again.user_attrs[FOLDER] == trial.user_attrs[FOLDER]
    assert study.trials[5].value == 0.123 and not (finished / "argv.json").exists()
    assert len([trial for trial in study.trials if trial.value is not None]) == 5
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 5  # a second start draws anew


@pytest.mark.slow
def test_runs_that_fail_end_the_sweep_in_the_end(fake_sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "1")
    with pytest.raises(SweepError, match=r"max_failures=1 runs ended with an error.*'no such luck', see .*console.log"):
        fake_sweep(max_failures=1, parallel=1)
    assert "no such luck" in (tmp_path / "trials/000" / CONSOLE).read_text()
    monkeypatch.delenv("FAKE_FAIL")
    study = fake_sweep(max_failures=2, n_trials=1)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE"]


def test_another_sweep_does_not_go_on_in_the_folder(fake_sweep, tmp_path):
    fake_sweep(n_trials=1)
    fake_sweep(n_trials=1, parallel=1)
    with pytest.raises(ConfigError, match=r"differs from the one that began there: seed was 1, is 2\. Give the same"):
        fake_sweep("seed=2", n_trials=1)
    with pytest.raises(ConfigError, match=r"params\.algorithm\.loss\.clip_high was 'interval\(0\.1, .* is absent"):
        fake_sweep(f"{CLIP}=0.2", n_trials=1)
    with held(tmp_path), pytest.raises(ConfigError, match=r"another process is at work in .*hydra.sweep.dir=FOLDER"):
        fake_sweep(n_trials=1)


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (["optimized_metric=null"], {}, "optimized_metric: expected the metric that is to be maximised, found null"),
        (
            [f"{CLIP}=interval(0.3,0.4)"],
            {},
            "clip_high: expected values .* config's own, 0.2, .* found 0.3 to 0.4. Add",
        ),
        (["updates.pases=interval(1,3)"], {}, "updates.pases: expected a key of the config to search, found none"),
        ([], {"parallel": 0}, "hydra.sweeper.parallel: expected at least 1, found 0"),
        ([], {"n_trials": "many"}, "hydra.sweeper.n_trials: expected an integer, found 'many'"),
        ([], {"sampler.n_startup_trial": 3}, "n_startup_trial"),
        (["updates.prompts_per_minibatch=0"], {}, "prompts_per_minibatch"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_starts(fake_sweep, tmp_path, overrides, settings, message):
    with pytest.raises(Exception, match=message):  # of Hydra: a misspelt key
        fake_sweep(*overrides, **settings)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kill_loses_no_finished_trial(tmp_path):
    """A multirun through Hydra, from another working directory."""
    command = [
        sys.executable,
        str(FAKE),
        "-m",
        "hparams_search=tiny",
        "hydra.sweeper.n_trials=6",
        f"hydra.sweep.dir={tmp_path}",
    ]
    start = {"cwd": tmp_path, "env": {**os.environ, "FAKE_PAUSE": "0.15"}}
    process = subprocess.Popen(command, **start)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("trials/*/summary.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    while not (running := [p for p in tmp_path.glob("trials/*") if not (p / "summary.json").exists()]):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    lines = list(map(Path.stat, tmp_path.glob("trials/*/metrics.jsonl")))
    before = {trial.number: trial.value for trial in stored(tmp_path).trials if trial.state.is_finished()}
    time.sleep(0.5)
    assert list(map(Path.stat, tmp_path.glob("trials/*/metrics.jsonl"))) == lines  # its trials died with it
    subprocess.run(command, **start, check=True)
    after = stored(tmp_path).trials
    assert len(before) >= 1 and {number: after[number].value for number in before} == before
    counted = [trial for trial in after if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(counted) == 6 and {trial.user_attrs[FOLDER] for trial in counted} >= {f"trials/{running[0].name}"}
