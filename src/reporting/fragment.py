"""The seam between the page of a report and its sections. Plain data: no files, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
class Fragment:
    r"""A section of the page: all styles end up in one `<style>`, and each script in a `<script>` of its own.

    The page's Content-Security-Policy names these by hash and allows nothing else: no `style` or `on…` attributes in
    the HTML, nor in what the script gives to `innerHTML`; `element.style.x = …` in the script is fine.

    Attributes:
        html: one `<section id="…" aria-labelledby="…">` with an `<h2>`, everything in it escaped. Data stands in
            `<script type="application/json">` with `<`, `>` and `&` written as `\u003c`, `\u003e` and `\u0026`.
        css: rules whose selectors begin with the section's id. Colours are the page's custom properties, which follow
            its theme: `--page`, `--raised`, `--ink`, `--muted`, `--rule`, `--accent`, `--good`, `--bad`, and
            `--region-<label>` for each region (text and lines) with `--region-<label>-soft` (behind text); in a label
            `_` stands as `-`.
        js: a script that runs once, after the whole document is parsed. It wraps itself in a function.
    """

    html: str
    css: str
    js: str
