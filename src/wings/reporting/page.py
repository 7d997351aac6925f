"""One self-contained HTML page from tables, charts and sections. Reads only its own assets, writes nothing.

Jinja escapes every text. The page's policy allows its own styles and scripts, by hash, and nothing else: no text of a
model can run or load anything, even if it got into the page unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.wings.comparing.run_folders import RunRecord, methods
from src.wings.reporting import overview, palette, tables
from src.wings.reporting.charts import Chart, Series
from src.wings.reporting.figures import panels_as_svg
from src.wings.reporting.inspector.section import PageSection, for_script

_ASSETS = Path(__file__).parent / "assets"
_DIGITS = 5


def render(
    runs: Sequence[RunRecord],
    charts: Mapping[str, Chart],
    sections: Sequence[PageSection] = (),
    *,
    baseline: str = "",
    reference_rows: str = "all",
) -> str:
    """The page.

    Args:
        runs: in the order of their colours.
        charts: by key; those without panels are left out.
        sections: further sections, below the charts.
        baseline: method that differences are taken to, if it is one of several.
        reference_rows: the paper's rows in the tables: `all`, `none`, or a part of the model's name.
    """
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    order = methods(runs)
    drawn = {key: chart for key, chart in charts.items() if chart.panels}
    style = "\n".join([_theme(), _asset("report.css"), *(section.css for section in sections)])
    scripts = [_asset("report.js"), *(section.js for section in sections)]
    return environment.get_template("report.html").render(
        title=overview.title(runs),
        sentences=overview.sentences(runs),
        warning=tables.comparable(runs),
        tested=overview.trained_on_tests(runs),
        results=tables.results(runs, baseline),
        paper=tables.paper_tables(runs, reference_rows),
        differences=tables.differences(runs) if len(runs) > 1 else None,
        events=tables.events(runs),
        runs=tables.provenance(runs),
        commands=tables.commands(runs),
        versions=tables.versions(runs),
        charts=drawn,
        svgs={key: list(map(Markup, panels_as_svg(chart, order))) for key, chart in drawn.items()},
        legend=[(method, *palette.method_style(index)) for index, method in enumerate(order)],
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=list(map(Markup, scripts)),
        data=Markup(for_script({key: _numbers(chart) for key, chart in drawn.items()})),
        sections=[Markup(section.html) for section in sections],
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
    """The palette of both themes, and rules that give figures, which are drawn in the light one, the page's."""
    light, dark = (palette.custom_properties(theme) for theme in ("light", "dark"))
    drawn = {f"method-{index}": tone for index, tone in enumerate(palette.METHODS)}
    drawn |= {name: palette.PAGE[name] for name in ("ink", "muted", "rule")}
    figures = "\n".join(
        f'svg [{what}="{tone.light}"] {{ {what}: var(--{name}); }}'
        for name, tone in drawn.items()
        for what in ("fill", "stroke")
    )
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}\n{figures}"
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _numbers(chart: Chart) -> dict[str, Any]:
    """What the tables below a chart's panels hold."""

    def numbers(series: Series) -> dict[str, Any]:
        y, start = (list(map(_rounded, values)) for values in (series.y, series.start))
        return {"run": series.run, "group": series.group, "x": list(series.x), "y": y, "start": start}

    panels = [
        {"title": one.title, "categories": list(one.categories), "series": list(map(numbers, one.series))}
        for one in chart.panels
    ]
    return {"regions": chart.colours == "region", "panels": panels}


def _rounded(value: float) -> float:
    """To five significant digits, so that the page stays small.

    >>> _rounded(0.123456789), _rounded(12345.678)
    (0.12346, 12346.0)
    """
    return value if value == 0 else round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
