"""A section of a page, which another module than the page's makes. Plain data: no files, no drawing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def for_script(content: Any) -> str:
    r"""JSON that nothing in it can end: ASCII only, without <, > and &, so neither tags nor comments nor line breaks.

    >>> for_script({"text": "</script><!--\u2028&"})
    '{"text":"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026"}'
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)  # all of <>& stand in strings
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
