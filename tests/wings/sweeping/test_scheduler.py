"""What becomes of a trial while it runs: pruned where its study says so, but for the one with the default settings."""

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from src.wings.sweeping.scheduler import TrialScheduler
from src.wings.sweeping.study import DEFAULT


class Running:
    """A run that has news and does not end."""

    stopped = False

    def ended(self) -> None:
        return None

    def news(self) -> list[tuple[int, float]]:
        return [(3, 0.25)]

    def stop(self) -> None:
        self.stopped = True


class AlwaysPruned(optuna.pruners.BasePruner):
    def prune(self, study, trial) -> bool:
        return True


@pytest.mark.parametrize("default", [True, False])
def test_every_trial_is_pruned_but_the_default(default, tmp_path, monkeypatch):
    study = optuna.create_study(direction="maximize", pruner=AlwaysPruned())
    trial, run = study.ask(), Running()
    trial.set_user_attr(DEFAULT, default)
    monkeypatch.setattr("src.wings.sweeping.scheduler.followers", lambda *_: {})
    monkeypatch.setattr(TrialScheduler, "_report", lambda self: None)
    training = OmegaConf.create({"optimized_metric": "val/exact_match"})
    space = type("Space", (), {"distributions": {}})()
    scheduler = TrialScheduler(training, None, space, study, tmp_path, None, [])
    assert scheduler._follow(trial, run) is run.stopped is not default
    (found,) = study.trials
    assert found.state == (TrialState.RUNNING if default else TrialState.PRUNED)
    assert found.intermediate_values == {3: 0.25}
