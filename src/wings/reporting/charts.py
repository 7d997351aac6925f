"""Records → what charts show: learning curves (Figure F.1), regions (as in Figure D.1), updates. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from src.protocol.types import Region
from src.runs.metric_names import ENTROPY, RESPONSE_TOKENS
from src.wings.comparing.comparison import ComparisonSettings, complete_curve, trailing_mean
from src.wings.comparing.run_folders import RunRecord, methods


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one run in one panel.

    Attributes:
        run: its name; empty for a row of the paper.
        group: what its colour stands for: the method, a region, a row of the paper, a kind of event.
        x: rollout steps, or indices of the panel's categories; ascending.
        y: a number for each x.
        start: the same before training, for bars; empty if it was not measured.
        notes: a text for each x, for events.
    """

    run: str
    group: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    start: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is measured.
        unit: of the numbers; may be empty.
        series: at least one.
        categories: what bars, spokes or rows stand for; empty for lines.
        last: where the axis of rollout steps ends, if that is after the last number.
        bar: a value to mark, for lines.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    categories: tuple[str, ...] = ()
    last: int = 0
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels that belong together: one figure.

    Attributes:
        key: its name in files and links.
        title: one line.
        caption: what to read from it, and how.
        panels: empty if no run has the numbers.
        kind: how panels are drawn.
        colours: what the colours of its groups stand for.
    """

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    kind: Literal["lines", "bars", "radar", "events"] = "lines"
    colours: Literal["method", "region"] = "method"


TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_FEWEST_TOKENS = 0.001
"""Share of a region in all tokens of a run, for it to be drawn: the means over fewer are noise."""


def curves(key: str, runs: Sequence[RunRecord]) -> Chart:
    """A chart of `charts.yaml`: metrics over rollout steps, a line a run.

    For regions, one panel a quantity with regions as groups for one method; for several methods, one a quantity and
    region.
    """
    about = TEXTS[key]
    if "panels" in about:
        found = [Panel(title, unit, _series(runs, metric)) for metric, title, unit in about["panels"]]
        zeros = about.get("zeros", True)
        shown = tuple(panel for panel in found if any(zeros or any(series.y) for series in panel.series))
        return Chart(key, about["title"], about["caption"], shown)
    labels = [region.label for region in Region if _appears(runs, region)]
    panels = []
    alone = len(methods(runs)) == 1
    for prefix, name, unit in about["regions"]:
        by_region = {label: _series(runs, f"{prefix}/{label}", label if alone else None) for label in labels}
        if alone:
            panels.append(Panel(name, unit, tuple(series for found in by_region.values() for series in found)))
        else:
            panels += [Panel(f"{name}: {label.replace('_', ' ')}", unit, found) for label, found in by_region.items()]
    shown = tuple(panel for panel in panels if panel.series)
    return Chart(key, about["title"], about["caption"], shown, colours="region" if alone else "method")


def events(runs: Sequence[RunRecord]) -> Chart:
    """Alarms and faults of each run over rollout steps; a row a run, in those that have any."""
    names = tuple(run.name for run in runs if run.events)
    series = tuple(
        Series(
            run.name,
            kind,
            tuple(event.step for event in found),
            (float(names.index(run.name)),) * len(found),
            notes=tuple(event.text for event in found),
        )
        for run in runs
        for kind in dict.fromkeys(event.kind for event in run.events)
        if (found := sorted((event for event in run.events if event.kind == kind), key=lambda event: event.step))
    )
    last = max((run.steps_done for run in runs if run.events), default=0)
    panels = (Panel("Events", "rollout step", series, names, last),) if series else ()
    return Chart("events", "Alarms and faults", "An alarm is told the first time that it holds.", panels, "events")


def _series(runs: Sequence[RunRecord], key: str, group: str | None = None) -> tuple[Series, ...]:
    """One for each run that has the metric; its group is the method unless given."""
    curves = ((run, *run.curve(key)) for run in runs)
    return tuple(Series(run.name, group or run.method, x, y) for run, x, y in curves if x)


def _appears(runs: Sequence[RunRecord], region: Region) -> bool:
    """Whether enough tokens of some run are in it, or nobody counted."""
    shares = [run.curve(f"token_share/{region.label}")[1] for run in runs]
    return not any(shares) or any(sum(found) > _FEWEST_TOKENS * len(found) for found in shares)


def comparison_curves(runs: Sequence[RunRecord], settings: ComparisonSettings) -> Chart:
    """Training metric (trailing mean), entropy and response length after each rollout step, one line a method.

    Raises:
        ComparisonError: a run has a step without one of the metrics.
    """
    metric, window = settings.training_metric, settings.window
    panels = [
        Panel(f"{metric}, trailing mean of {window}", "", _complete(runs, metric, window), bar=settings.bar),
        Panel("policy entropy", "nats a token", _complete(runs, ENTROPY, 1)),
        Panel("response length", "tokens", _complete(runs, RESPONSE_TOKENS, 1)),
    ]
    return Chart("curves", "Learning curves", "", tuple(panels))


def _complete(runs: Sequence[RunRecord], metric: str, window: int) -> tuple[Series, ...]:
    """The trailing means of a metric that every step has."""
    curves = ((run, trailing_mean(complete_curve(run, metric), window)) for run in runs)
    return tuple(Series(run.name, run.method, tuple(range(window, len(run.steps) + 1)), tuple(y)) for run, y in curves)
