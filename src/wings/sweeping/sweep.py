"""A sweep: check → study → trials → table and figure. Starts and ends processes, writes in the sweep's folder alone."""

from __future__ import annotations

import logging
import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from src.config.rules import check_config
from src.errors import ConfigError
from src.runs.config_file import without_home
from src.runs.folder import held, hide_home, open_run_folder
from src.runs.line_file import write_whole
from src.runs.summary import command_line
from src.wings.sweeping.scheduler import TrialScheduler
from src.wings.sweeping.search import FREE, SECTION, Space, defaults, read_settings, read_space
from src.wings.sweeping.study import finished, open_study, take_up
from src.wings.sweeping.trial_run import Launch, cancel_jobs
from src.wings.timing.prediction import dry_run

log = logging.getLogger(__name__)

_FREE = ("paths", "dry_run", "ckpt_path")
"""Sections and keys, besides settings of the sweep, that may change when it goes on."""


def sweep(
    config: DictConfig, arguments: Sequence[str], program: Path, loader: ConfigLoader | None = None
) -> float | None:
    """Run a sweep in `hydra.sweep.dir`, or go on with the one that is there.

    Args:
        config: composed without what is swept, with Hydra's own node; that learns where the sweep's folder is.
        arguments: of the command line, without Hydra's own: plain overrides and sweeps.
        program: the Python file that trains.
        loader: of Hydra, which knows the groups that a sweep chooses from.

    Returns:
        The best value; None if no trial finished, or `dry_run` only asks what one will take.

    Raises:
        ConfigError: the config cannot run, or is another one than that of the sweep in the folder.
        SweepError: more than `hydra.sweeper.max_failures` runs ended with an error.
        KeyboardInterrupt: SIGINT or SIGTERM, after the trials have ended.
    """
    settings = read_settings(config.hydra.sweeper)
    space = read_space(settings.params, arguments, loader)
    folder = Path(config.hydra.sweep.dir).resolve()
    training = _training(config, folder)
    check_config(training)
    if training.optimized_metric is None:
        raise ConfigError("optimized_metric: expected the metric that is to be maximised, found null.")
    default = defaults(config, space)
    if training.dry_run:
        dry_run(training)
        return None
    open_run_folder(folder, "hydra.sweep.dir")
    with held(folder, "hydra.sweep.dir"), ExitStack() as stack:
        study = open_study(folder, settings, _made_of(config, training, space))
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        hide_home(folder)
        write_whole(folder / "multirun.yaml", without_home(OmegaConf.to_yaml(config)))
        log.info("Sweep folder: %s. After an end before its time, go on with: %s", folder, _again(config, folder))
        for name in take_up(study, default):
            log.info("'%s' was cut off and is tried again.", name)
            cancel_jobs(folder / name)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        launch = Launch.of(config, space.given, program, settings.parallel)
        scheduler = TrialScheduler(
            training, settings, space, study, folder, launch, start=_start(config, space, program)
        )
        try:
            scheduler.run()
        except KeyboardInterrupt:
            log.warning("Interrupted; finished trials are kept. To go on: %s", _again(config, folder))
            raise
    return max((trial.value for trial in finished(study) if trial.value is not None), default=None)


def _training(config: DictConfig, folder: Path) -> DictConfig:
    """The config of a training, without Hydra's own node; its output folder is the sweep's."""
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _made_of(config: DictConfig, training: DictConfig, space: Space) -> dict[str, Any]:
    """What trials depend on."""
    made_of, sweeper = (OmegaConf.to_container(node, resolve=False) for node in (training, config.hydra.sweeper))
    assert isinstance(made_of, dict) and isinstance(sweeper, dict)
    settings = {str(key): value for key, value in sweeper.items() if key not in (*FREE, "params")}
    kept = {str(key): value for key, value in made_of.items() if key not in _FREE}
    return {**kept, SECTION: settings | {"params": dict(space.texts)}}


def _start(config: DictConfig, space: Space, program: Path) -> list[str]:
    """A training of the experiment that is searched over, in full length."""
    experiment = config.hydra.runtime.choices.get("experiment")
    given = [text for text in space.given if not text.startswith(("experiment=", "hparams_search="))]
    return ["python", f"src/{program.name}", *([f"experiment={experiment}"] if experiment else []), *given]


def _again(config: DictConfig, folder: Path) -> str:
    """The command that goes on in the sweep's folder."""
    if any(text.startswith("hydra.sweep.dir=") for text in config.hydra.overrides.hydra):
        return command_line()
    near = folder.is_relative_to(Path.cwd())
    return f"{command_line()} {shlex.quote(f'hydra.sweep.dir={os.path.relpath(folder) if near else folder}')}"
