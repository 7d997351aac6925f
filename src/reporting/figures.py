"""Charts as matplotlib figures, for PNG and SVG files and for loggers. Records in, Figure out; touches no files.

No pyplot: a figure belongs to who asked for it and is freed with it.

    figures.learning_curves([record]).savefig("learning_curves.svg")
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from src.evaluation.statistics import estimate
from src.reporting import benchmarks, charts
from src.reporting.charts import Chart, Panel, Series
from src.reporting.palette import METHODS, PAGE, method_style, region_style
from src.reporting.records import RunRecord, methods

CHARTS: Mapping[str, Callable[[Sequence[RunRecord]], Chart]] = {
    "learning_curves": charts.learning_curves,
    "region_entropy": charts.region_entropy,
    "region_weights": charts.region_weights,
    "gradient_share": charts.gradient_share,
    "benchmark_bars": benchmarks.benchmark_bars,
    "benchmark_radar": benchmarks.benchmark_radar,
    "updates": charts.updates,
    "events": charts.events,
}
"""Every chart of a report by its key, in the report's order."""

_MARKERS = "osD^vP*X"
_COLUMNS = 3
_FURTHEST = 0.9
_INK, _MUTED, _RULE = (PAGE[name].light for name in ("ink", "muted", "rule"))


def learning_curves(runs: Sequence[RunRecord]) -> Figure:
    """Figure F.1: see `charts.learning_curves`."""
    return draw(charts.learning_curves(runs), methods(runs))


def region_entropy(runs: Sequence[RunRecord]) -> Figure:
    """Figure D.1 through training: see `charts.region_entropy`."""
    return draw(charts.region_entropy(runs), methods(runs))


def region_weights(runs: Sequence[RunRecord]) -> Figure:
    """See `charts.region_weights`."""
    return draw(charts.region_weights(runs), methods(runs))


def gradient_share(runs: Sequence[RunRecord]) -> Figure:
    """See `charts.gradient_share`."""
    return draw(charts.gradient_share(runs), methods(runs))


def benchmark_bars(runs: Sequence[RunRecord]) -> Figure:
    """See `benchmarks.benchmark_bars`."""
    return draw(benchmarks.benchmark_bars(runs), methods(runs))


def benchmark_radar(runs: Sequence[RunRecord]) -> Figure:
    """Figure 2: see `benchmarks.benchmark_radar`."""
    return draw(benchmarks.benchmark_radar(runs), methods(runs))


def updates(runs: Sequence[RunRecord]) -> Figure:
    """See `charts.updates`."""
    return draw(charts.updates(runs), methods(runs))


def draw(chart: Chart, order: Sequence[str]) -> Figure:
    """A chart as a figure on white.

    Args:
        chart: one with panels; without any, the figure says that there are no numbers.
        order: the methods, which decides their colours.
    """
    columns = 1 if chart.kind in ("bars", "events") else min(_COLUMNS, max(1, len(chart.panels)))
    rows = math.ceil(len(chart.panels) / columns)
    heights = [_height(panel, chart.kind) for panel in chart.panels[::columns]]
    figure = Figure(figsize=(max(4.2 * columns, 6.0), max(sum(heights), 1.5) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(chart.title, fontsize=12, x=0.01, ha="left", color=_INK)
    if not chart.panels:
        figure.text(0.5, 0.4, "no numbers", ha="center", color=_MUTED)
        return figure
    styles = _Styles(chart, order)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for index, panel in enumerate(chart.panels):
        axes = figure.add_subplot(grid[index // columns, index % columns], polar=chart.kind == "radar")
        axes.set_title(panel.title, fontsize=10, loc="left", color=_INK)
        axes.tick_params(labelsize=8, colors=_MUTED)
        _DRAWN[chart.kind](axes, panel, styles)
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=9,
    )
    return figure


def _height(panel: Panel, kind: str) -> float:
    """In inches."""
    if kind == "bars":
        groups = len({series.group for series in panel.series})
        return 0.7 + len(panel.categories) * (0.12 + 0.13 * groups)
    return {"events": 0.9 + 0.3 * len(panel.categories), "radar": 3.4}.get(kind, 2.5)


class _Styles:
    """What groups look like."""

    def __init__(self, chart: Chart, order: Sequence[str]) -> None:
        self._chart, self._order = chart, order
        groups = dict.fromkeys(series.group for panel in chart.panels for series in panel.series)
        self.others = [group for group in groups if group not in order]

    def __call__(self, group: str) -> tuple[str, object]:
        """(colour, line style)."""
        if self._chart.colours == "region":
            return region_style(group).light, "-"
        if group in self._order:
            tone, dashes = method_style(self._order.index(group))
            return tone.light, (0, dashes) if dashes else "-"
        if self._chart.kind == "events":
            return METHODS[self.others.index(group) % len(METHODS)].light, "-"
        return _MUTED, (0, (1, 2) if self.others.index(group) % 2 else (5, 2))


def grouped(panel: Panel) -> dict[str, list[Series]]:
    """The series of each group, in order.

    >>> panel = Panel("a", "", (Series("r1", "rest", (0,), (1.0,)), Series("r2", "rest", (0,), (2.0,))))
    >>> {group: [series.run for series in found] for group, found in grouped(panel).items()}
    {'rest': ['r1', 'r2']}
    """
    groups: dict[str, list[Series]] = defaultdict(list)
    for series in panel.series:
        groups[series.group].append(series)
    return dict(groups)


def mean_line(found: Sequence[Series]) -> tuple[list[int], list[float]]:
    """Mean over the runs that got furthest, at the x that all of these have.

    A run that ended before nine tenths of the longest is left out: with it the mean would end or jump there.

    >>> series = [Series("a", "g", (0, 1), (1.0, 2.0)), Series("b", "g", (1,), (4.0,)), Series("c", "g", (0,), (9.0,))]
    >>> mean_line(series)
    ([1], [3.0])
    """
    end = max(max(series.x, default=0) for series in found)
    values = [dict(zip(s.x, s.y, strict=True)) for s in found if max(s.x, default=0) >= _FURTHEST * end]
    shared = [x for x in values[0] if all(x in of_run for of_run in values)]
    return shared, [math.fsum(of_run[x] for of_run in values) / len(values) for x in shared]


def _lines(axes: Axes, panel: Panel, styles: _Styles) -> None:
    for group, found in grouped(panel).items():
        colour, style = styles(group)
        if len(found) > 1:
            for series in found:
                axes.plot(series.x, series.y, color=colour, linewidth=0.7, alpha=0.35)
        x, y = mean_line(found)
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.7, label=group, marker="." if len(x) < 12 else "")
    axes.set_ylabel(panel.unit, fontsize=8, color=_MUTED)
    axes.set_xlabel("rollout step", fontsize=8, color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=_RULE, linewidth=0.5)
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, panel: Panel, styles: _Styles) -> None:
    groups = grouped(panel)
    thickness = 0.8 / len(groups)
    for number, (group, found) in enumerate(groups.items()):
        colour, _ = styles(group)
        for category in range(len(panel.categories)):
            values = [s.y[s.x.index(category)] for s in found if category in s.x]
            if not values:
                continue
            mean = estimate(values)
            place = category + (number - (len(groups) - 1) / 2) * thickness
            axes.barh(place, mean.mean, 0.85 * thickness, color=colour, xerr=mean.error, ecolor=_INK, label=group)
            starts = [s.start[s.x.index(category)] for s in found if s.start and category in s.x]
            if starts:
                before = math.fsum(starts) / len(starts)
                axes.plot([before] * 2, [place - thickness / 2, place + thickness / 2], color=_INK, linewidth=1.4)
    axes.set_yticks(range(len(panel.categories)), panel.categories)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=_RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _radar(axes: Axes, panel: Panel, styles: _Styles) -> None:
    assert isinstance(axes, PolarAxes)
    angles = np.linspace(0, 2 * np.pi, len(panel.categories), endpoint=False)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for group, found in grouped(panel).items():
        colour, style = styles(group)
        _, y = mean_line(found)
        axes.plot(np.append(angles, 0.0), [*y, y[0]], color=colour, linestyle=style, linewidth=1.6, label=group)
    axes.set_xticks(angles, panel.categories)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(color=_RULE, linewidth=0.5)
    axes.spines[:].set_color(_RULE)


def _events(axes: Axes, panel: Panel, styles: _Styles) -> None:
    for group, found in grouped(panel).items():
        marker = _MARKERS[styles.others.index(group) % len(_MARKERS)]
        x, y = ([value for series in found for value in getattr(series, name)] for name in ("x", "y"))
        axes.scatter(x, y, marker=marker, color=styles(group)[0], label=group.replace("_", " "), zorder=3)
    axes.set_yticks(range(len(panel.categories)), panel.categories)
    axes.set_ylim(len(panel.categories) - 0.5, -0.5)
    axes.set_xlim(0, max(panel.last, 1))
    axes.set_xlabel("rollout step", fontsize=8, color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(color=_RULE, linewidth=0.5)
    axes.spines[:].set_visible(False)


_DRAWN: Mapping[str, Callable[[Axes, Panel, _Styles], None]] = {
    "lines": _lines,
    "bars": _bars,
    "radar": _radar,
    "events": _events,
}
