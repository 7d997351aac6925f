"""Records → Markdown, for dashboards that show text: headline numbers, health, config, tables. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from src.wings.reporting.headline import sentences, title
from src.wings.reporting.run_record import RunRecord
from src.wings.reporting.shown_settings import shown_settings
from src.wings.reporting.tables import Table, events, results

_SPECIAL = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|*_`[]\\~#!"} | {ord("\n"): " ↵ ", ord("\r"): ""}
_LONGEST = 600
_NOW = ("reward/total", "reward/exact_match", "train/entropy", "response/tokens", "train/loss", "train/nll")


def overview(run: RunRecord) -> str:
    """What became of a run so far: sentences, headline numbers before training and now, the last step, health."""
    parts = [f"# {plain(title([run]))}", plain(" ".join(sentences([run])))]
    scores = results([run], run.method)
    if scores.rows:
        parts += ["## Before training and now", _table(replace(scores, head=("Metric", "Start", "Now", "Change")))]
    if run.steps:
        last = max(run.steps)
        values = [(key, f"{run.steps[last][key]:.4g}") for key in _NOW if key in run.steps[last]]
        parts += [f"## Rollout step {last}", table(("Metric", "Value"), values)]
    parts += ["## Health", _table(events([run])) if run.events else "No alarms or faults."]
    return "\n\n".join(filter(None, parts))


def config(settings: Mapping[str, object]) -> str:
    """A run's config as YAML, without secrets and paths of the machine.

    Args:
        settings: keys joined by dots.

    >>> print(config({"seed": 1, "data.path": "/srv/ann/train.json", "logger.wandb.api_key": "x"}))
        data:
          path: …/train.json
        seed: 1
    """
    return textwrap.indent(yaml.safe_dump(shown_settings(settings), allow_unicode=True, width=1000), " " * 4).rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    r"""A table; texts are plain, and long ones cut in their middle.

    >>> print(table(("a", "b"), [("x|y\nz", 0.5), (None, 2)]))
    | a | b |
    | --- | --- |
    | x&#124;y ↵ z | 0.5 |
    | – | 2 |
    """
    lines = [[plain(name) for name in head], ["---"] * len(head), *(list(map(_written, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """Text that reads the same in Markdown, on one line.

    >>> plain("<think> a_b *c*")
    '&#60;think&#62; a&#95;b &#42;c&#42;'
    """
    return text.translate(_SPECIAL)


def _table(made: Table) -> str:
    shown = table(made.head, [[cell.text for cell in row] for row in made.rows])
    return f"{shown}\n\n{plain(made.note)}".rstrip()


def _written(value: str | float | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, str):
        return f"{value:.6g}"
    kept = _LONGEST // 2
    return plain(value if len(value) <= _LONGEST else f"{value[:kept]} … {value[-kept:]}")
