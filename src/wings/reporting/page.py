"""One self-contained HTML page from tables, charts and sections. Reads only its own assets, writes nothing.

Jinja escapes every text. The page's policy allows its own styles and scripts, by hash, and nothing else: no text of a
model can run or load anything, even if it got into the page unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.wings.reporting import palette
from src.wings.reporting.charts import Chart, Panel
from src.wings.reporting.html_fragment import Fragment, for_script
from src.wings.reporting.run_record import RunRecord, methods
from src.wings.reporting.tables import Table

_ASSETS = Path(__file__).parent / "assets"
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Contents:
    """What the page shows besides charts.

    Attributes:
        title: of the page.
        lead: sentences that say what happened.
        warning: why the runs' differences are not the method's alone; may be empty.
        results: before and after training.
        paper: tables in the paper's layout; may be empty.
        differences: settings that differ; None for one run.
        events: alarms and faults.
        runs: how the runs were made.
        commands: run -> command.
        versions: of Python and packages.
    """

    title: str
    lead: Sequence[str]
    warning: str
    results: Table
    paper: Sequence[Table]
    differences: Table | None
    events: Table
    runs: Table
    commands: Mapping[str, str]
    versions: Table


def render(
    runs: Sequence[RunRecord], contents: Contents, charts: Mapping[str, Chart], sections: Sequence[Fragment] = ()
) -> str:
    """The page.

    Args:
        runs: in the order of their colours.
        contents: tables and texts.
        charts: by key; those without panels are left out.
        sections: further sections, below the charts.
    """
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    drawn = {key: chart for key, chart in charts.items() if chart.panels}
    style = "\n".join([_theme(), _asset("report.css"), *(section.css for section in sections)])
    scripts = [_asset("charts.js"), _asset("report.js"), *(section.js for section in sections)]
    return template.render(
        contents=contents,
        charts=drawn,
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=list(map(Markup, scripts)),
        data=Markup(for_script(_data(runs, drawn))),
        sections=[Markup(section.html) for section in sections],
        method_legend=[(name, index % len(palette.METHODS)) for index, name in enumerate(methods(runs))],
    )


def _policy(style: str, scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: these texts and images in the page itself."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"

    allowed = " ".join(map(digest, scripts))
    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {allowed}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _theme() -> str:
    light, dark = (palette.custom_properties(theme) for theme in ("light", "dark"))
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}"
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _data(runs: Sequence[RunRecord], charts: Mapping[str, Chart]) -> dict[str, Any]:
    """What the charts' script draws from."""
    order = methods(runs)
    styles = {}
    for index, method in enumerate(order):
        _, dashes = palette.method_style(index)
        styles[method] = {"colour": f"--method-{index % len(palette.METHODS)}", "dashes": list(dashes)}
    return {
        "runs": [{"name": run.name, "method": run.method, "finished": run.finished} for run in runs],
        "methods": styles,
        "charts": {
            key: {"kind": chart.kind, "colours": chart.colours, "panels": list(map(_panel, chart.panels))}
            for key, chart in charts.items()
        },
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "unit": panel.unit,
        "categories": list(panel.categories),
        "last": panel.last,
        "series": [
            {
                "run": series.run,
                "group": series.group,
                "x": list(series.x),
                "y": list(map(_rounded, series.y)),
                "start": list(map(_rounded, series.start)),
                "notes": list(series.notes),
            }
            for series in panel.series
        ],
    }


def _rounded(value: float) -> float:
    """To five significant digits, so that the page stays small.

    >>> _rounded(0.123456789), _rounded(12345.678)
    (0.12346, 12346.0)
    """
    return value if value == 0 else round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
