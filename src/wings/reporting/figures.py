"""Charts as matplotlib figures, for PNG and SVG files and for loggers. Records in, Figure out; touches no files.

No pyplot: a figure belongs to who asked for it and is freed with it.

    figures.learning_curves([record]).savefig("learning_curves.svg")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from src.wings.reporting import benchmark_scores as benchmarks
from src.wings.reporting import charts
from src.wings.reporting.charts import Chart, Panel
from src.wings.reporting.drawing import DRAWN, INK, MUTED, Styles
from src.wings.reporting.run_record import RunRecord, methods

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

_COLUMNS = 3


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
    figure, cells = _grid(chart, columns)
    figure.text(
        0.1 / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight(), chart.title, size=12, va="top", color=INK
    )
    if not chart.panels:
        figure.text(0.5, 0.4, "no numbers", ha="center", color=MUTED)
        return figure
    styles = Styles(chart, order)
    for index, panel in enumerate(chart.panels):
        axes = figure.add_subplot(cells[index // columns, index % columns], polar=chart.kind == "radar")
        axes.set_title(panel.title, fontsize=10, loc="left", color=INK, pad=14 if chart.kind == "radar" else None)
        axes.tick_params(labelsize=8, colors=MUTED, length=0)
        DRAWN[chart.kind](axes, panel, styles)
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 1.7)))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _grid(chart: Chart, columns: int) -> tuple[Figure, GridSpec]:
    """An empty figure and its cells, measured in inches: layout engines take longer than all of the drawing."""
    heights = [_height(panel, chart.kind) for panel in chart.panels[::columns]] or [1.0]
    names = [name for panel in chart.panels for name in panel.categories if chart.kind in ("bars", "events")]
    left, right, top, gap = 0.6 + 0.065 * max(map(len, names), default=0), 0.25, 0.7, 0.75
    groups = {series.group for panel in chart.panels for series in panel.series}
    wide, between = (6.5, 0.6) if columns == 1 and chart.kind != "lines" else (3.7, 0.6)
    width = left + right + columns * wide + (columns - 1) * between
    bottom = 0.6 + 0.2 * math.ceil(max(1, len(groups)) / max(1, int(width / 1.7)))
    height = top + bottom + sum(heights) + gap * (len(heights) - 1)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    cells = figure.add_gridspec(
        len(heights),
        columns,
        height_ratios=heights,
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        hspace=gap * len(heights) / sum(heights),
        wspace=between / wide,
    )
    return figure, cells


def _height(panel: Panel, kind: str) -> float:
    """Of the axes, in inches."""
    if kind == "bars":
        groups = len({series.group for series in panel.series})
        return 0.1 + len(panel.categories) * (0.12 + 0.13 * groups)
    return {"events": 0.2 + 0.3 * len(panel.categories), "radar": 2.6}.get(kind, 1.7)
