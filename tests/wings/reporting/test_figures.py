"""Every chart is drawn: as a figure, and panel by panel as SVG that a page may hold."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from src.wings.comparing.run_folders import RunRecord, methods, read_runs
from src.wings.reporting import figures
from tests.wings.reporting.made_runs import NASTY, write_run


@pytest.mark.parametrize("several", [False, True])
def test_every_figure_is_drawn(tmp_path: Path, several: bool) -> None:
    for method, seed in (("rest", 1), ("grpo", 1), ("rest", 2)) if several else (("rest", 1),):
        write_run(tmp_path, method, seed, alarm="found")
    runs = read_runs([tmp_path])
    for make in figures.CHARTS.values():
        chart = make(runs)
        figure = figures.draw(chart, methods(runs))
        assert [axes.get_title(loc="left") for axes in figure.axes] == [panel.title for panel in chart.panels]
        figure.savefig(io.BytesIO(), format="svg")


def test_a_figure_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    figure = figures.figure("learning_curves", [RunRecord("rest-1", "rest", 1, {0: {"reward/total": 1.0}})])
    assert isinstance(figure, Figure) and len(figure.axes) == 1
    assert figures.figure("benchmark_bars", [RunRecord("rest-1", "rest", 1, {})]).texts[-1].get_text() == "no numbers"


def test_panels_as_svg_are_the_same_each_time_and_fit_into_one_page(tmp_path: Path) -> None:
    for method, seed in (("rest", 1), ("grpo", 1), ("rest", 2)):
        write_run(tmp_path, method, seed, alarm="found")
    runs = read_runs([tmp_path])
    charts = [make(runs) for make in figures.CHARTS.values()]
    once, again = ([svg for chart in charts for svg in figures.panels_as_svg(chart, methods(runs))] for _ in range(2))
    assert once == again and len(once) == sum(len(chart.panels) for chart in charts) > 20
    page = "".join(once)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r"#([a-z_]+-\d+-\w+)", page)) == set(ids)
    assert "style" not in page and "xlink" not in page and str(tmp_path) not in page


def test_a_panel_as_svg_names_its_series_and_keeps_texts_as_texts(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, "rest", seed, alarm=NASTY + "\x1b")
    runs = read_runs([tmp_path])
    svgs = figures.panels_as_svg(figures.CHARTS["learning_curves"](runs), ["rest"])
    drawn = ElementTree.fromstring(svgs[1])  # exact match of rollouts
    assert drawn.get("role") == "img" and drawn.get("aria-label") == "Exact match of rollouts"
    shown = [element for element in drawn.iter("g") if element.get("data-group") == "rest"]
    assert [element.findtext("title") for element in shown] == ["rest-1", "rest-2", "rest: from 0.125 to 0.5"]
    assert {"Exact match of rollouts", "rollout step"} <= {element.text for element in drawn.iter("text")}
    shapes = {shape.get("id") for group in drawn.iter("defs") for shape in group}
    uses = [use for use in drawn.iter("use")]
    assert uses and all(link[1:] in shapes for use in uses for name, link in use.items() if name.endswith("href"))
    assert not any(element.get("id") for element in drawn.iter("path") if element.get("id") not in shapes)
    (events,) = figures.panels_as_svg(figures.CHARTS["events"](runs), ["rest"])
    titles = [element.text for element in ElementTree.fromstring(events).iter("title")]
    assert titles == [f"rest-{seed}, rollout step 1, truncated: {NASTY}" for seed in (1, 2)]
