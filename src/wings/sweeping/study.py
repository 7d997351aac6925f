"""Optuna's study in the sweep's folder: begun, or gone on with after whatever ended the last start."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from src.errors import ConfigError
from src.wings.evaluation.evaluation_folder import differences
from src.wings.sweeping.search import FREE, SECTION, Parameters, SweepSettings

log = logging.getLogger(__name__)

STUDY = "study.db"
FOLDER, DEFAULT, ERROR = "folder", "default", "error"
"""User attributes of trials: the run folder's name, whether it has the default parameters, why its run failed."""
_MADE_OF = "made_of"


def open_study(folder: Path, settings: SweepSettings, made_of: Mapping[str, Any]) -> optuna.Study:
    """The study of a folder.

    Args:
        folder: of the sweep.
        settings: for sampler and pruner.
        made_of: what trials depend on; a study that goes on must be made of the same.

    Raises:
        ConfigError: it is not.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder / STUDY}"
    study = optuna.create_study(
        storage=storage,
        study_name="sweep",
        direction="maximize",
        pruner=settings.pruner or NopPruner(),
        load_if_exists=True,
    )
    study.sampler = settings.sampler(seed=settings.seed + len(study.trials))  # a second start draws other parameters
    now = json.loads(json.dumps(made_of))
    if _MADE_OF not in study.user_attrs:
        study.set_user_attr(_MADE_OF, now)
    elif found := differences(study.user_attrs[_MADE_OF], now):
        raise ConfigError(
            f"hydra.sweep.dir={folder}: this sweep differs from the one that began there: {'; '.join(found)}. Give the "
            f"same arguments (of {SECTION}, {', '.join(FREE)} may change), or another folder."
        )
    return study


def take_up(study: optuna.Study, default: Parameters) -> list[str]:
    """Queue what is to be tried first: the default, and again the trials that ended with the sweep.

    Those are marked as failed; their second tries have the same parameters and run folders. Nothing is lost or queued
    twice if this is cut off too.

    Returns:
        The run folders' names of such trials.
    """
    trials = study.get_trials(deepcopy=False)
    waiting = {trial.user_attrs.get(FOLDER) for trial in trials if trial.state == TrialState.WAITING}
    if not any(trial.user_attrs.get(DEFAULT) for trial in trials):
        study.enqueue_trial(default, user_attrs={DEFAULT: True})
    again = []
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        folder = trial.user_attrs.get(FOLDER, folder_name(trial.number))
        parameters = default if trial.user_attrs.get(DEFAULT) else dict(trial.params)
        if folder not in waiting:
            study.enqueue_trial(parameters, user_attrs={**trial.user_attrs, FOLDER: folder})
        study.tell(trial.number, state=TrialState.FAIL)
        again.append(folder)
    return again


def ask(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> Trial:
    """The next trial, queued ones first; it has a run folder."""
    trial = study.ask(dict(space))
    if FOLDER not in trial.user_attrs:
        trial.set_user_attr(FOLDER, folder_name(trial.number))
    return trial


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count: finished or pruned."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def failures(study: optuna.Study) -> list[FrozenTrial]:
    """Trials whose run ended with an error, not those that were cut off."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in failed if ERROR in trial.user_attrs]


def folder_name(number: int) -> str:
    """Of a trial's run folder.

    >>> folder_name(7)
    'trials/007'
    """
    return f"trials/{number:03d}"
