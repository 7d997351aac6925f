"""One panel of a chart on matplotlib axes. Draws on the axes that it is given, and touches nothing else.

An artist that shows a series has the gid `series_id(group, text)`: a page can hide its group and show its text.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from src.wings.comparing.comparison import estimate
from src.wings.reporting.charts import Chart, Panel, Series
from src.wings.reporting.palette import METHODS, PAGE, REGIONS, method_style

INK, MUTED, RULE = (PAGE[name].light for name in ("ink", "muted", "rule"))
_MARKERS = "osD^vP*X"
_FURTHEST = 0.9


class Styles:
    """What the groups of a chart look like; the order of the methods decides their colours."""

    def __init__(self, chart: Chart, order: Sequence[str]) -> None:
        self._chart, self._order = chart, order
        groups = dict.fromkeys(series.group for panel in chart.panels for series in panel.series)
        self.others = [group for group in groups if group not in order]

    def __call__(self, group: str) -> tuple[str, Any]:
        """(colour, line style)."""
        if self._chart.colours == "region":
            return REGIONS[group].light, "-"
        if group in self._order:
            tone, dashes = method_style(self._order.index(group))
            return tone.light, (0, dashes) if dashes else "-"
        if self._chart.kind == "events":
            return METHODS[self.others.index(group) % len(METHODS)].light, "-"
        return MUTED, (0, (1, 2) if self.others.index(group) % 2 else (5, 2))


def series_id(group: str, text: str) -> str:
    """What an artist's gid says: the group whose series it shows, and a text for the pointer.

    >>> series_id("rest", "rest-1")
    '["rest", "rest-1"]'
    """
    return json.dumps([group, text])


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


def _lines(axes: Axes, panel: Panel, styles: Styles) -> None:
    for group, found in grouped(panel).items():
        colour, style = styles(group)
        if len(found) > 1:
            for series in found:
                gid = series_id(group, series.run)
                axes.plot(series.x, series.y, color=colour, linewidth=0.7, alpha=0.35, gid=gid)
        x, y = mean_line(found)
        gid = series_id(group, f"{group}: from {y[0]:.3g} to {y[-1]:.3g}" if y else group)
        marker = "." if len(x) < 12 else ""
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.7, label=group, marker=marker, gid=gid)
    if panel.bar is not None:
        axes.axhline(panel.bar, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylabel(panel.unit, fontsize=8, color=MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _over_rollout_steps(axes, 5)


def _over_rollout_steps(axes: Axes, ticks: int) -> None:
    axes.set_xlabel("rollout step", fontsize=8, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.grid(color=RULE, linewidth=0.5)
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, panel: Panel, styles: Styles) -> None:
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
            gid = series_id(group, f"{group}, {panel.categories[category]}: {mean.mean:.3g}")
            bars = axes.barh(place, mean.mean, 0.85 * thickness, color=colour, xerr=mean.error, ecolor=INK, label=group)
            marks = [*bars, *(bars.errorbar.get_children() if bars.errorbar else ())]
            if len(groups) < 5:
                marks += axes.bar_label(bars, [f"{mean.mean:.3g}"], padding=3, fontsize=7, color=MUTED)
            starts = [s.start[s.x.index(category)] for s in found if s.start and category in s.x]
            if starts:
                before = math.fsum(starts) / len(starts)
                ends = [place - thickness / 2, place + thickness / 2]
                marks += axes.plot([before] * 2, ends, color=INK, linewidth=1.4)
            for mark in marks:
                mark.set_gid(gid)
    axes.set_yticks(range(len(panel.categories)), panel.categories)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _radar(axes: Axes, panel: Panel, styles: Styles) -> None:
    assert isinstance(axes, PolarAxes)
    angles = np.linspace(0, 2 * np.pi, len(panel.categories), endpoint=False)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    for group, found in grouped(panel).items():
        colour, style = styles(group)
        _, y = mean_line(found)
        axes.plot(
            *(np.append(angles, 0.0), [*y, y[0]]),
            color=colour,
            linestyle=style,
            linewidth=1.6,
            label=group,
            gid=series_id(group, group),
        )
    axes.set_xticks(angles, panel.categories)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(color=RULE, linewidth=0.5)
    axes.spines[:].set_color(RULE)


def _events(axes: Axes, panel: Panel, styles: Styles) -> None:
    for series in panel.series:
        kind = series.group.replace("_", " ")
        marker = _MARKERS[styles.others.index(series.group) % len(_MARKERS)]
        colour, _ = styles(series.group)
        for x, y, note in zip(series.x, series.y, series.notes, strict=True):
            gid = series_id(series.group, f"{series.run}, rollout step {x}, {kind}: {note}")
            axes.scatter(x, y, marker=marker, color=colour, label=kind, zorder=3, gid=gid)
    axes.set_yticks(range(len(panel.categories)), panel.categories)
    axes.set_ylim(len(panel.categories) - 0.5, -0.5)
    axes.set_xlim(0, max(panel.last, 1))
    _over_rollout_steps(axes, 8)


DRAWN: Mapping[str, Callable[[Axes, Panel, Styles], None]] = {
    "lines": _lines,
    "bars": _bars,
    "radar": _radar,
    "events": _events,
}
