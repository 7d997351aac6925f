"""A report's figures as files. Charts in, PNG, SVG and PDF out; light to import, for a process that only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from src.wings.reporting.charts import Chart
from src.wings.reporting.figures import draw

FORMATS = ("png", "svg", "pdf")

_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": 2}},  # a tenth larger, and half of the time
    "svg": {"metadata": {"Date": None}},
}


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
            with rc_context({"svg.fonttype": "none"}):  # text stays text
                figure.savefig(file, dpi=dpi, **_OPTIONS.get(suffix, {}))
