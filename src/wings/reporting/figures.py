"""Charts as matplotlib figures: for files, for loggers, and panel by panel as SVG in the page.

No pyplot: a figure belongs to who asked for it and is freed with it.

    figures.figure("learning_curves", [record]).savefig("learning_curves.svg")
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec

from src.wings.comparing.run_folders import RunRecord, methods
from src.wings.reporting import benchmark_charts, charts
from src.wings.reporting.charts import Chart, Panel
from src.wings.reporting.panel_drawing import DRAWN, INK, MUTED, Styles

CHARTS: Mapping[str, Callable[[Sequence[RunRecord]], Chart]] = {
    **{
        key: partial(charts.curves, key)
        for key in ("learning_curves", "episodes", "region_entropy", "region_weights", "gradient_share")
    },
    "benchmark_bars": benchmark_charts.benchmark_bars,
    "benchmark_radar": benchmark_charts.benchmark_radar,
    "updates": partial(charts.curves, "updates"),
    "events": charts.events,
}
"""Every chart of a report by its key, in the report's order."""
FORMATS = ("png", "svg", "pdf")

_SAVED: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": 2}},  # a tenth larger, and half of the time
    "svg": {"metadata": {"Date": None}},
}
_COLUMNS = 3
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def figure(key: str, runs: Sequence[RunRecord]) -> Figure:
    """One of `CHARTS` of these runs, drawn; with a note instead of panels where no run has the numbers."""
    return draw(CHARTS[key](runs), methods(runs))


def draw(chart: Chart, order: Sequence[str]) -> Figure:
    """A chart as a figure on white, with a note if it has no panels; the order of the methods decides their colours."""
    columns = 1 if chart.kind in ("bars", "events") else min(_COLUMNS, max(1, len(chart.panels)))
    figure, cells = _grid(chart.kind, chart.panels, columns, top=0.7, legend=True)
    figure.text(
        0.1 / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight(), chart.title, size=12, va="top", color=INK
    )
    if not chart.panels:
        figure.text(0.5, 0.4, "no numbers", ha="center", color=MUTED)
        return figure
    styles = Styles(chart, order)
    for index, panel in enumerate(chart.panels):
        _draw_panel(figure, cells[index // columns, index % columns], chart.kind, panel, styles)
    _add_legend(figure)
    return figure


def panels_as_svg(chart: Chart, order: Sequence[str]) -> list[str]:
    """Each panel of a chart as an `<svg>` element without style attributes, which the page's policy forbids.

    Colours are attributes with the values of the light palette. What shows a series has `data-group` and a tooltip.
    Panels have a legend unless their groups are the methods, whose legend is the page's. The order of the methods
    decides their colours.
    """
    styles = Styles(chart, order)
    drawn = []
    for index, panel in enumerate(chart.panels):
        legend = any(series.group not in order for series in panel.series)
        figure, cells = _grid(chart.kind, [panel], 1, top=0.5 if chart.kind == "radar" else 0.35, legend=legend)
        _draw_panel(figure, cells[0, 0], chart.kind, panel, styles)
        if legend:
            _add_legend(figure)
        drawn.append(_inline_svg(figure, panel.title, f"{chart.key}-{index}-"))
    return drawn


def save_figures(
    folder: Path, charts: Mapping[str, Chart], order: Sequence[str], formats: Sequence[str], *, dpi: int
) -> None:
    """Write a file a chart and format; one of an earlier report that has no numbers now is removed.

    Args:
        folder: is made.
        charts: by key, which names the file.
        order: the methods, which decides their colours.
        formats: of `FORMATS`.
        dpi: pixels an inch of PNG files.
    """
    folder.mkdir(exist_ok=True)
    for key, chart in charts.items():
        figure = draw(chart, order) if chart.panels and formats else None
        for suffix in formats:
            file = folder / f"{key}.{suffix}"
            if figure is None:
                file.unlink(missing_ok=True)
                continue
            with _svg_settings():
                figure.savefig(file, dpi=dpi, **_SAVED.get(suffix, {}))


def _svg_settings() -> AbstractContextManager[None]:
    """Text stays text, and what is drawn twice is the same to the byte."""
    return rc_context({"svg.fonttype": "none", "svg.hashsalt": "rest"})


def _draw_panel(figure: Figure, cell: SubplotSpec, kind: str, panel: Panel, styles: Styles) -> None:
    axes = figure.add_subplot(cell, polar=kind == "radar")
    axes.set_title(panel.title, fontsize=10, loc="left", color=INK, pad=14 if kind == "radar" else None)
    axes.tick_params(labelsize=8, colors=MUTED, length=0, left=False, bottom=False)
    DRAWN[kind](axes, panel, styles)


def _add_legend(figure: Figure) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 1.7)))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=9)


def _grid(kind: str, panels: Sequence[Panel], columns: int, *, top: float, legend: bool) -> tuple[Figure, GridSpec]:
    """An empty figure and its cells, measured in inches: layout engines take longer than all of the drawing."""
    heights = [_height(panel, kind) for panel in panels[::columns]] or [1.0]
    names = [name for panel in panels for name in panel.categories if kind in ("bars", "events")]
    left, right, gap, between = 0.6 + 0.065 * max(map(len, names), default=0), 0.25, 0.75, 0.6
    groups = {series.group for panel in panels for series in panel.series}
    wide = 6.5 if kind in ("bars", "events") else 3.7
    width = left + right + columns * wide + (columns - 1) * between
    bottom = 0.4 + (0.2 + 0.2 * math.ceil(max(1, len(groups)) / max(1, int(width / 1.7))) if legend else 0)
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


def _inline_svg(figure: Figure, label: str, prefix: str) -> str:
    """A figure as an element of a page, where ids are unique with `prefix` and fonts are the page's."""
    written = io.StringIO()
    with _svg_settings():
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = _NOT_XML.sub("", written.getvalue())
    used = set(re.findall(r"#([mp][0-9a-f]{10})", text))
    drawn = ElementTree.fromstring(text)
    svg = ElementTree.Element("svg", {"viewBox": drawn.attrib["viewBox"], "role": "img", "aria-label": label})
    svg.extend(made for child in drawn for made in _for_page(child, prefix, used))
    return ElementTree.tostring(svg, encoding="unicode")


def _for_page(element: ElementTree.Element, prefix: str, used: Set[str]) -> list[ElementTree.Element]:
    """An element of matplotlib's SVG with its children, as `panels_as_svg` describes; empty groups dissolve."""
    tag = element.tag.rpartition("}")[2]
    if tag in ("metadata", "style"):
        return []
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    name = attributes.pop("id", "")
    for key, value in (pair.rstrip("; ").split(": ", 1) for pair in attributes.pop("style", "").split("; ") if pair):
        if not key.startswith("font"):
            attributes[key] = value
        elif size := re.search(r"([\d.]+)px", value):
            attributes["font-size"] = size[1]
    made = ElementTree.Element(tag)
    for key, value in attributes.items():
        short = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.5g}", value)
        short = re.sub(r" *\b([A-Za-z]) +", r"\1", short) if key == "d" else short
        made.set(key, re.sub(r"#(?=[mp][0-9a-f]{10})", f"#{prefix}", short))
    made.text = (element.text or "").strip()
    if name in used:
        made.set("id", prefix + name)
    elif name.startswith('["'):
        group, text = json.loads(name)
        made.set("data-group", group)
        ElementTree.SubElement(made, "title").text = _NOT_XML.sub("", text)
    children = [found for child in element for found in _for_page(child, prefix, used)]
    if (tag == "g" and not (made.attrib and children)) or (tag == "defs" and not children):
        return children
    made.extend(children)
    return [made]
