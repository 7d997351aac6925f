"""The page in a headless Chromium: console, widths, themes, legend and tables. `make test-browser`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.report import report
from tests.wings.reporting.made_runs import NASTY, write_run
from tests.wings.reporting.test_page import report_config

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three runs of two methods, one of which says what no page may believe."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, "rest", 1, alarm=NASTY)
    write_run(folder, "rest", 2, lift=0.125)
    write_run(folder, "grpo", 1, finished=False, steps=3)
    return report(report_config(f"runs=[{folder}]", "formats=[]"))


@pytest.fixture(params=[(390, "light"), (1400, "dark")], ids=["narrow-light", "wide-dark"])
def page(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Any]:
    """The open page; a console message or a request at any time fails the test."""
    width, theme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce")
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda made: None if made.url.startswith(("file:", "data:")) else said.append(made.url))
    opened.goto(file.as_uri())
    yield opened
    context.close()
    assert said == []


def test_it_fits_and_every_chart_is_drawn(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    panels = page.locator("[data-chart] .panel").count()
    assert panels > 20 and page.locator("[data-chart] .panel svg[role=img]").count() == panels
    assert page.locator("nav a").all_text_contents()[:2] == ["Results", "Learning"]


def test_a_method_has_its_colour_of_the_theme(page: Any) -> None:
    strokes = "[...document.querySelectorAll('.panel [data-group=grpo] path')].map((x) => getComputedStyle(x).stroke)"
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert "rgb(94, 177, 239)" if dark else "rgb(0, 103, 165)" in page.evaluate(strokes)


def test_the_pointer_is_told_what_a_line_is(page: Any) -> None:
    lines = page.locator("[data-chart=learning_curves] svg").nth(1).locator("[data-group] title")  # exact match
    assert lines.all_text_contents() == ["grpo: from 0.125 to 0.375", "rest-1", "rest-2", "rest: from 0.188 to 0.562"]


def test_the_legend_hides_methods(page: Any) -> None:
    panel = page.locator("[data-chart=learning_curves] .panel").nth(1)
    panel.locator("summary").click()
    assert panel.locator("thead th").all_text_contents() == ["Rollout step", "grpo-1", "rest-1", "rest-2"]
    lines = panel.locator("[data-group]:visible")
    assert lines.count() == 4  # two seeds and their mean, and a run alone
    page.get_by_role("button", name="rest").click()
    assert lines.count() == 1
    assert panel.locator("thead th").all_text_contents() == ["Rollout step", "grpo-1"]
    assert page.locator("#legend button[aria-pressed=false]").count() == 1
    page.get_by_role("button", name="rest").click()
    assert lines.count() == 4


def test_a_table_has_the_numbers_of_a_chart(page: Any) -> None:
    panel = page.locator("[data-chart=learning_curves] .panel").nth(1)
    panel.locator("summary").click()
    rows = [row.split("\t") for row in panel.locator("tr").all_inner_texts()]
    assert rows[0] == ["Rollout step", "grpo-1", "rest-1", "rest-2"]
    assert rows[-1] == ["3", "–", "0.500", "0.625"]


def test_the_theme_is_the_system_s_until_chosen(page: Any) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    before = page.evaluate(background)
    themes = [page.evaluate(background) for _ in range(3) if page.locator("#theme").click() is None]
    assert len({*themes}) == 2 and themes[-1] == before  # light, dark, the system's again


def test_alarms_are_shown_as_text(page: Any) -> None:
    titles = page.locator("[data-chart=events] .panel svg title").all_text_contents()
    assert titles == [f"rest-1, rollout step 1, truncated: {NASTY}"]
