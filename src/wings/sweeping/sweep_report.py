"""A sweep as a table, as JSON and as a figure. Reads the study, and writes the files that it is told to."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from src.runs.line_file import write_whole
from src.runs.markdown_table import markdown_table
from src.wings.sweeping.search import as_override
from src.wings.sweeping.study import DEFAULT, ERROR, FOLDER, finished

TABLE, RECORD, FIGURE = "sweep.md", "sweep.json", "importance.png"
_FEWEST = 4  # trials from which an importance can be computed at all
_BLUE, _RED, _GREY = "#332288", "#cc6677", "#999999"
_MARKS = {"finished": (_BLUE, "o"), "the default": (_RED, "o"), "pruned": (_GREY, "x")}
_NOTES = """\
- {metric}: of the last validation. A pruned trial has none; in brackets is what it was compared by when it was ended, \
the trailing mean of {watched}.
- The best of several noisy values flatters itself: run it and the default with other seeds before you believe it.
- Importance: PED-ANOVA, how differently a parameter is distributed among the better half of the trials and among all. \
With few trials it is a hint at most. Pruned trials come last."""


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what tells the better half of the trials from all, largest first; they sum to 1.

    PED-ANOVA (Watanabe et al., arXiv 2304.10255) needs no values, only which trials are the better ones, so pruned
    trials take part: they come after all finished ones. Nothing where there are fewer than four trials.
    """
    trials = ranked(study)
    if len(trials) < _FEWEST:
        return {}
    alike = optuna.create_study(direction="maximize")
    for rank, trial in enumerate(trials):
        alike.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=-rank))
    found = optuna.importance.get_param_importances(alike, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.5))
    return {key: float(share) for key, share in sorted(found.items(), key=lambda item: -item[1])}


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials by value, then pruned ones by how far they came."""

    def order(trial: FrozenTrial) -> tuple[bool, float, float]:
        complete = trial.state == TrialState.COMPLETE
        return (not complete, 0.0 if complete else -(trial.last_step or 0), -_value(trial))

    return sorted(finished(study), key=order)


def write_report(
    folder: Path,
    study: optuna.Study,
    *,
    metric: str,
    watched: str,
    start: Sequence[str],
    followers: Mapping[str, str],
    about: Mapping[str, Any],
    figure: bool,
) -> str:
    """Write `sweep.md`, `sweep.json` and perhaps `importance.png` of what there is so far, and return the table.

    Args:
        folder: of the sweep.
        study: with at least one trial that counts.
        metric: that trials are ranked by.
        watched: that they were compared by on the way.
        start: the command of a training, without parameters, by words.
        followers: config keys that take the value of a searched one.
        about: what else the JSON holds.
        figure: draw it too.
    """
    trials, shares = ranked(study), importances(study)
    keys = list(shares) or list(trials[0].params)
    table = _table(trials, keys, metric)
    parts = [f"# {len(trials)} trials", table, _NOTES.format(metric=metric, watched=watched)]
    if trials[0].state == TrialState.COMPLETE:
        values = {**trials[0].params, **{key: trials[0].params[leader] for key, leader in followers.items()}}
        best = " \\\n    ".join([shlex.join(start), *(shlex.quote(as_override(*pair)) for pair in values.items())])
        parts.insert(1, f"Best: trial {trials[0].number}, {_gain(trials)}.\n\n```bash\n{best}\n```")
    if shares:
        parts += [
            "## Importance",
            markdown_table(["Parameter", "Share"], [[f"`{key}`", f"{share:.2f}"] for key, share in shares.items()]),
        ]
    if shares and figure:
        parts.append(f"![Importance of each parameter, and each trial's value by it]({FIGURE})")
        draw(folder / FIGURE, trials, shares, metric)
    content = {
        "metric": metric,
        "watched": watched,
        "trials": [_record(trial) for trial in trials],
        "failed": [_record(trial) for trial in study.get_trials(states=(TrialState.FAIL,))],
        "importances": shares,
        **about,
    }
    write_whole(folder / TABLE, "\n\n".join(parts) + "\n")
    write_whole(folder / RECORD, json.dumps(content, indent=2) + "\n")
    return table


def draw(path: Path, trials: Sequence[FrozenTrial], shares: Mapping[str, float], metric: str) -> None:
    """Importances as bars, and every trial's value over each parameter; pruned trials stand on the lower border."""
    columns = math.ceil(len(shares) / 2)
    figure = Figure(figsize=(4.2 + 2.6 * columns, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    (left, right), *_ = figure.subfigures(1, 2, width_ratios=(4.2, 2.6 * columns), squeeze=False)
    names = short_names(list(shares))
    bars = left.subplots()
    bars.barh([names[key] for key in shares], list(shares.values()), color=_BLUE)
    bars.invert_yaxis()
    bars.set(title="importance", xlim=(0, None))
    axes = list(right.subplots(2, columns, sharey=True, squeeze=False).flat)
    for axis, key in zip(axes, shares, strict=False):
        _scatter(axis, trials, key)
        axis.set(title=names[key])
    for axis in axes[len(shares) :]:
        axis.set_axis_off()
    right.supylabel(metric)
    right.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=len(_MARKS), frameon=False)
    figure.savefig(path, dpi=120)


def _scatter(axis: Axes, trials: Sequence[FrozenTrial], key: str) -> None:
    for label, (colour, marker) in _MARKS.items():
        marked = [trial for trial in trials if _mark(trial) == label]
        if not marked:
            continue
        where: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "clip_on": False} if label == "pruned" else {}
        values = [0.0 if label == "pruned" else _value(trial) for trial in marked]
        parameters = [trial.params[key] for trial in marked]
        axis.plot(parameters, values, marker, color=colour, alpha=0.8, label=label, **where)
    if getattr(trials[0].distributions[key], "log", False):
        axis.set_xscale("log")
    axis.margins(y=0.1)
    axis.grid(alpha=0.25)


def _mark(trial: FrozenTrial) -> str:
    if trial.state != TrialState.COMPLETE:
        return "pruned"
    return "the default" if trial.user_attrs.get(DEFAULT) else "finished"


def _table(trials: Sequence[FrozenTrial], keys: Sequence[str], metric: str) -> str:
    names = short_names(keys)
    lines = [
        [
            f"{trial.number}{' (default)' if trial.user_attrs.get(DEFAULT) else ''}",
            _result(trial),
            *(shown(trial.params[key]) for key in keys),
            f"{_seconds(trial):.0f}",
        ]
        for trial in trials
    ]
    return markdown_table(["Trial", metric, *(names[key] for key in keys), "Seconds"], lines)


def _result(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"{_value(trial):.3f}"
    return f"pruned after {(trial.last_step or 0) + 1} steps ({_value(trial):.3f})"


def _gain(trials: Sequence[FrozenTrial]) -> str:
    """How the best one stands to the default."""
    best = _value(trials[0])
    base = next((t for t in trials if t.user_attrs.get(DEFAULT) and t.state == TrialState.COMPLETE), None)
    if base is None:
        return f"{best:.3f}"
    return f"{best:.3f}" + (", the default" if base is trials[0] else f"; the default has {_value(base):.3f}")


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        "parameters": dict(trial.params),
        "default": bool(trial.user_attrs.get(DEFAULT)),
        "folder": trial.user_attrs.get(FOLDER),
        "error": trial.user_attrs.get(ERROR),
        "watched": {str(step): value for step, value in trial.intermediate_values.items()},
        "seconds": round(_seconds(trial), 1),
    }


def _value(trial: FrozenTrial) -> float:
    """The value of a trial that counts; of a pruned one the last that was watched."""
    return math.nan if trial.value is None else float(trial.value)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Keys by their shortest ends that tell them apart.

    >>> short_names(["algorithm.loss.clip_high", "algorithm.weighting.factors.format"])
    {'algorithm.loss.clip_high': 'clip_high', 'algorithm.weighting.factors.format': 'format'}
    """
    names, keys = {}, list(keys)
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        names[key] = next(end for end in ends if [k for k in keys if k == end or k.endswith(f".{end}")] == [key])
    return names


def shown(value: Any) -> str:
    """A parameter's value in a table.

    >>> shown(0.0123456), shown(3), shown("cosine")
    ('0.0123', '3', 'cosine')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)
