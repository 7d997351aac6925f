"""The trials of a sweep side by side: started, compared as they go, pruned, finished or failed. Tells the study."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from src.runs.signals import EXIT_SAVED
from src.runs.summary import command_line, versions
from src.wings.sweeping.search import SECTION, Space, SweepSettings, followers
from src.wings.sweeping.study import DEFAULT, ERROR, FOLDER, ask, failures, finished
from src.wings.sweeping.sweep_report import short_names, shown, write_report
from src.wings.sweeping.trial_run import CONSOLE, Launch, TrialRun, Watch, final_value, last_line

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class SweepError(RuntimeError):
    """Too many runs ended with an error: names the log of the last."""


@dataclass(eq=False)
class TrialScheduler:
    """The trials that are running, and what becomes of them.

    Attributes:
        training: the config that trials share.
        settings: how to search.
        space: what to search.
        study: what was tried.
        folder: of the sweep.
        launch: how trials are started.
        start: the command of a training of full length, by words, for the report.
    """

    training: DictConfig
    settings: SweepSettings
    space: Space
    study: optuna.Study
    folder: Path
    launch: Launch
    start: Sequence[str]
    _running: list[tuple[Trial, TrialRun]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def metric(self) -> str:
        """The metric that is maximised."""
        return str(self.training.optimized_metric)

    def run(self) -> None:
        """Run trials until as many are finished or pruned as were asked for; then write the report.

        Raises:
            SweepError: more than `max_failures` runs ended with an error.
        """
        try:
            while True:
                while self._wanted():
                    self._start(ask(self.study, self.space.distributions))
                if not self._running:
                    break
                time.sleep(_POLL_SECONDS)
                self._running = [pair for pair in self._running if not self._follow(*pair)]
        finally:  # an error or an interrupt: what runs is ended, and tried again by the next start
            for _, run in self._running:
                run.stop()
        self._report(last=True)

    def _wanted(self) -> bool:
        """Whether another trial is to be started."""
        running = len(self._running)
        return running < self.settings.parallel and len(finished(self.study)) + running < self.settings.n_trials

    def _start(self, trial: Trial) -> None:
        folder = self.folder / trial.user_attrs[FOLDER]
        watch = Watch(folder / "metrics.jsonl", self.settings.watched, self.settings.window)
        if (value := final_value(folder, self.metric)) is not None:  # it finished when the sweep was not there to see
            for step, seen in watch.news():
                trial.report(seen, step)
            self._finish(trial, value)
            return
        given = ", ".join(f"{name}={shown(trial.params[key])}" for key, name in short_names(trial.params).items())
        log.info("Trial %d: %s", trial.number, given)
        self._running.append((trial, TrialRun(folder, self.launch, trial.params, watch)))

    def _follow(self, trial: Trial, run: TrialRun) -> bool:
        """Take note of a trial's news; whether it is over."""
        status = run.ended()
        for step, value in run.news():
            trial.report(value, step)
            if status is None and not trial.user_attrs.get(DEFAULT) and trial.should_prune():
                run.stop()
                self.study.tell(trial, state=TrialState.PRUNED)
                log.info("Trial %d: pruned after rollout step %d at %.3f.", trial.number, step, value)
                self._report()
                return True
        if status is None:
            return False
        value_at_end = final_value(run.folder, self.metric)
        if status == 0 and value_at_end is not None:
            self._finish(trial, value_at_end)
        elif status == EXIT_SAVED:
            log.warning("Trial %d: its run was asked to end; it is tried again.", trial.number)
            self.study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self._fail(trial, run, status)
        return True

    def _finish(self, trial: Trial, value: float) -> None:
        self.study.tell(trial, value)
        log.info("Trial %d: %s %.3f.", trial.number, self.metric, value)
        if not self.study.trials[trial.number].intermediate_values:
            log.warning(
                "%s.watched=%s: fewer than window=%d rollout steps of trial %d have it; nothing can be pruned.",
                *(SECTION, self.settings.watched, self.settings.window, trial.number),
            )
        self._report()

    def _fail(self, trial: Trial, run: TrialRun, status: int) -> None:
        error = f"exit status {status}, '{last_line(run.folder / CONSOLE)}'"
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)
        log.warning("Trial %d: its run failed with %s.", trial.number, error)
        if len(failures(self.study)) > self.settings.max_failures:
            raise SweepError(
                f"More than {SECTION}.max_failures={self.settings.max_failures} runs ended with an error. The last "
                f"said {last_line(run.folder / CONSOLE)!r}, see '{run.folder / CONSOLE}'. After the cause is gone, "
                f"start the same command again with hydra.sweep.dir='{self.folder}' and a higher max_failures."
            )

    def _report(self, *, last: bool = False) -> None:
        """Write what there is so far; at the end with the figure."""
        about = {
            "seconds_of_this_start": round(time.monotonic() - self._began, 1),
            "parallel": self.settings.parallel,
            "command": command_line(),
            "versions": versions(),
        }
        table = write_report(
            self.folder,
            self.study,
            metric=self.metric,
            watched=self.settings.watched,
            start=self.start,
            followers=followers(self.training, list(self.space.distributions)),
            about=about,
            figure=last,
        )
        if last:
            log.info("%d trials\n\n%s\n", len(finished(self.study)), table)
            log.info("Sweep folder: %s", self.folder)
