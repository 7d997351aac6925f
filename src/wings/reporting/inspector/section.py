"""The inspector as a section of a page: samples chosen, encoded and put into its template. Reads run folders only."""

from __future__ import annotations

import html
import json
import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from src.wings.reporting.inspector.encoding import Encoder, names
from src.wings.reporting.inspector.rollout_records import GroupPlace, NoSamplesError, RolloutFile
from src.wings.reporting.palette import custom_properties

log = logging.getLogger(__name__)

MAX_BYTES = 8_000_000

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("decode.js", "view.js", "inspector.js")
_WITHOUT = Template(
    '<section id="inspector" aria-labelledby="h-inspector">\n<h2 id="h-inspector">Rollouts</h2>\n'
    "<p>$note</p>\n</section>"
)
_SHARE = 0.3
"""Bytes of a page for a byte of `rollouts.jsonl`: less than what was seen, and what is too much is left out again."""
_KEPT = 0.97  # of a size that fits
FEWEST = 2
"""Groups of a run that are always shown: the first and the last."""


@dataclass(frozen=True, slots=True)
class InspectedRun:
    """A run whose rollouts a section shows.

    Attributes:
        name: what the page calls it; unique in a report.
        folder: its run folder; `rollouts.jsonl` may be missing from it.
        method: `algorithm.name` of its config.
    """

    name: str
    folder: Path
    method: str


@dataclass(frozen=True, slots=True)
class PageSection:
    r"""A section of the page: all styles end up in one `<style>`, and each script in a `<script>` of its own.

    The page's Content-Security-Policy names these by hash and allows nothing else: no `style` or `on…` attributes in
    the HTML, nor in what the script gives to `innerHTML`; `element.style.x = …` in the script is fine.

    Attributes:
        html: one `<section id="…" aria-labelledby="…">` with an `<h2>`, everything in it escaped. Data stands in
            `<script type="application/json">`, written by `for_script`.
        css: rules whose selectors begin with the section's id. Colours are the page's custom properties, which follow
            its theme: `--page`, `--raised`, `--ink`, `--muted`, `--rule`, `--accent`, `--good`, `--bad`, and
            `--region-<label>` for each region (text and lines) with `--region-<label>-soft` (behind text); in a label
            `_` stands as `-`.
        js: a script that runs once, after the whole document is parsed. It wraps itself in a function.
    """

    html: str
    css: str
    js: str


def section(runs: Sequence[InspectedRun], *, max_bytes: int = MAX_BYTES) -> PageSection:
    """The inspector over the samples of these runs.

    Args:
        runs: one without samples is named on the page.
        max_bytes: of the samples; groups are left out evenly over the rollout steps of each run. The first and the last
            group of each run are there even if they alone take more.

    Raises:
        InspectorError: a line of a `rollouts.jsonl` is not a record.
    """
    files: dict[int, RolloutFile] = {}
    for index, run in enumerate(runs):
        try:
            files[index] = RolloutFile(run.folder)
        except NoSamplesError as error:
            log.warning("%s", error)
    data, shown = _encoded(runs, files, max_bytes) if files else ("", {})
    note = _note(runs, files, shown)
    css = _asset("inspector.css")
    if not files:
        return PageSection(_WITHOUT.substitute(note=note), css, "")
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    return PageSection(
        html=Template(_asset("inspector.html")).substitute(note=note, data=data),
        css=css,
        js=f'(() => {{\n"use strict";\n{script}}})();\n',
    )


def standalone_page(fragment: PageSection, title: str = "Rollouts") -> str:
    """A page of this one section; it loads nothing."""
    light, dark = (custom_properties(theme) for theme in ("light", "dark"))
    return Template(_asset("page.html")).substitute(
        title=html.escape(title), light=light, dark=dark, css=fragment.css, html=fragment.html, js=fragment.js
    )


def for_script(content: Any) -> str:
    r"""JSON that nothing in it can end: ASCII only, without <, > and &, so neither tags nor comments nor line breaks.

    >>> for_script({"text": "</script><!--\u2028&"})
    '{"text":"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026"}'
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)  # all of <>& stand in strings
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def evenly(places: Sequence[GroupPlace], keep: int) -> list[GroupPlace]:
    """`keep` groups of a run, evenly spread, with the first and the last; all where there are no more.

    >>> [place.line for place in evenly([GroupPlace(0, "a/0", 0, 1, line) for line in range(10)], 4)]
    [0, 3, 6, 9]
    """
    keep = min(len(places), max(keep, FEWEST))
    return [places[round(index * (len(places) - 1) / max(keep - 1, 1))] for index in range(keep)]


def _encoded(
    runs: Sequence[InspectedRun], files: Mapping[int, RolloutFile], max_bytes: int
) -> tuple[str, dict[int, int]]:
    """The page's JSON, and how many groups of each run are in it."""

    def expected(keep: int) -> int:
        picked = (place for file in files.values() for place in evenly(file.places, keep))
        return round(_SHARE * sum(place.stop - place.start for place in picked))

    most = max(len(file.places) for file in files.values())
    keep = FEWEST + bisect_right(range(FEWEST + 1, most + 1), max_bytes, key=expected)
    while True:
        picked = {index: evenly(file.places, keep) for index, file in files.items()}
        data = for_script(_payload(runs, files, picked))
        if len(data) <= max_bytes or keep == FEWEST:
            break
        keep = max(FEWEST, min(keep - 1, int(keep * _KEPT * max_bytes / len(data))))
    if len(data) > max_bytes:
        log.warning(
            "The first and last samples of each run take %d bytes, more than the %d asked for.", len(data), max_bytes
        )
    return data, {index: len(some) for index, some in picked.items()}


def _payload(
    runs: Sequence[InspectedRun], files: Mapping[int, RolloutFile], picked: Mapping[int, Sequence[GroupPlace]]
) -> dict[str, object]:
    encoder = Encoder()
    groups = [encoder.group(index, group) for index, file in files.items() for group in file.read(picked[index])]
    return {
        "names": names(),
        "runs": [{"name": run.name, "method": run.method} for run in runs],
        "groups": groups,
        "tokens": list(encoder.tokens),
        "lines": list(encoder.lines),
    }


def _note(runs: Sequence[InspectedRun], files: Mapping[int, RolloutFile], shown: Mapping[int, int]) -> str:
    """How many of the logged groups are on the page, as markup."""
    without = [run.name for index, run in enumerate(runs) if index not in files]
    lack = f"Without samples: {', '.join(map(html.escape, without))}." if without else ""
    if not files:
        return f"No samples. {lack}".strip()
    total = sum(len(file.places) for file in files.values())
    count = sum(shown.values())
    if count == total:
        text = f"All {total} prompt groups that were logged."
    else:
        each = ", ".join(f"{html.escape(runs[i].name)} {shown[i]} of {len(file.places)}" for i, file in files.items())
        text = f"{count} of the {total} prompt groups that were logged, evenly over the rollout steps: {each}."
    return f"{text} {lack}".strip()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
