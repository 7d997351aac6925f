"""The report's figures, texts and samples in TensorBoard and W&B during training. Reads the run's files, writes none.

Nothing of the training depends on it: it draws between rollout steps, on rank 0, and leaves random states as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from src.callbacks.rollout_log import group_records
from src.errors import ConfigError
from src.runs.random_states import random_states, restore_random_states
from src.training.step import RolloutCallback, RolloutStep, Training
from src.wings.comparing.run_folders import RunRecord, flat_settings, read_events, sort_events
from src.wings.reporting import overview
from src.wings.reporting.figures import CHARTS, draw
from src.wings.reporting.inspector.rollout_records import logged_group
from src.wings.reporting.live.dashboards import Dashboard, dashboards_of, show_figure
from src.wings.reporting.live.samples import SampleTable, sample_table
from src.wings.reporting.shown_settings import shown_settings


class LiveFigures(RolloutCallback):
    """Shows `figures/<chart>`, `text/overview`, `text/config` and `samples/…` where a logger can show them.

    At the start, every N rollout steps and at the end, each with the validation and benchmarks of that step; a run that
    goes on shows what it had. Loggers other than TensorBoard and W&B get nothing; without these two it does nothing.

    Args:
        metrics_path: of `callbacks.metrics_file`, which has the steps before a resume too.
        config_path: the run's config.
        every_n_rollout_steps: rollout steps between two drawings.
        figures: keys of `wings.reporting.figures.CHARTS`; one without numbers is left out.
        groups: prompt groups of rank 0 in the table of samples; with 0 no prompt and completion leaves the machine.
        dpi: pixels an inch.

    Raises:
        ValueError: a number out of bounds, or a figure that there is not.
    """

    def __init__(
        self,
        metrics_path: str,
        config_path: str,
        every_n_rollout_steps: int = 20,
        *,
        figures: Sequence[str] = tuple(CHARTS),
        groups: int = 1,
        dpi: int = 100,
    ) -> None:
        least = {"every_n_rollout_steps": (every_n_rollout_steps, 1), "groups": (groups, 0), "dpi": (dpi, 10)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ConfigError(f"callbacks.live_figures.{name}: expected at least {bound}, found {value}.")
        if unknown := [name for name in figures if name not in CHARTS]:
            raise ConfigError(f"callbacks.live_figures.figures: expected some of {list(CHARTS)}, found {unknown}.")
        self._metrics_path, self._config_path = Path(metrics_path), Path(config_path)
        self._every, self._figures, self._groups, self._dpi = every_n_rollout_steps, tuple(figures), groups, dpi
        self._dashboards: list[Dashboard] = []
        self._settings: Mapping[str, object] | None = None
        self._samples: SampleTable | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the loggers."""
        self._dashboards = dashboards_of(trainer.loggers) if trainer.is_global_zero else []
        self._settings = None

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Keep this step's samples if it is to be shown."""
        done = module.rollout_step
        if not self._dashboards or not (done % self._every == 0 or done >= module.updates.rollout_steps):
            return
        logged = list(zip(step.scored, step.groups, step.entropies, strict=True))[: self._groups]
        records = (
            group_records(step.index, scored, group, entropies, module.sampler.collector.table)
            for scored, group, entropies in logged
        )
        self._samples = sample_table([logged_group(found) for found in records])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the steps so far: by now their validation and benchmarks are there."""
        done = cast(Training, pl_module).rollout_step
        if self._dashboards and (self._settings is None or done % self._every == 0):
            self._show(done, ended=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the whole run."""
        if self._dashboards:
            self._show(cast(Training, pl_module).rollout_step, ended=True)

    def _show(self, step: int, *, ended: bool) -> None:
        states = random_states()
        if self._settings is None:
            self._settings = flat_settings(cast(DictConfig, OmegaConf.load(self._config_path)))
            for dashboard in self._dashboards:
                dashboard.settings(shown_settings(self._settings))
                dashboard.text("text/config", overview.config(self._settings), step)
        run = self._record(self._settings, ended=ended)
        for name in self._figures:
            chart = CHARTS[name]([run])
            if chart.panels:
                show_figure(self._dashboards, f"figures/{name}", draw(chart, [run.method]), step, self._dpi)
        told = overview.overview(run)
        for dashboard in self._dashboards:
            dashboard.text("text/overview", told, step)
            if self._samples is not None and self._samples.rows:
                dashboard.table(self._samples.name, self._samples.columns, self._samples.rows, step)
        self._samples = None
        restore_random_states(states)

    def _record(self, settings: Mapping[str, object], *, ended: bool) -> RunRecord:
        """What the run's file says by now. No summary of it is read: there is none yet, or it is of before a resume."""
        events = read_events(self._metrics_path) if self._metrics_path.exists() else []
        method, seed = settings.get("algorithm.name"), settings.get("seed")
        return RunRecord(
            f"{method}-{seed}",
            str(method),
            seed if isinstance(seed, int) else None,
            *sort_events(events),
            settings=settings,
            summary={} if ended else None,
        )
