"""Results as tables in the paper's layout, with the paper's rows below for reference.

The rows are those of Tables 1, 2, D.1, D.2 and D.3 (arXiv 2509.21826), in `paper_rows.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from src.runs.markdown_table import markdown_table
from src.wings.evaluation.benchmark import UNPARSED, EvalReport, Subset

_FILE = yaml.safe_load(Path(__file__).with_name("paper_tables.yaml").read_text(encoding="utf-8"))
_ROUNDING = 0.0101
"""Percentage points that rounding to two digits can put between a total and its parts."""
NOT_ADDING_UP = "† In the paper, this row's overall is not the mean of its parts."


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One model in one table of the paper.

    Attributes:
        table: its number.
        model: as the paper writes it.
        scores: in percent, under the names of our scores.
    """

    table: str
    model: str
    scores: Mapping[str, float]

    @property
    def adds_up(self) -> bool:
        """Whether the row's total is the mean of its parts, up to rounding.

        >>> PaperRow("2", "A", {"overall": 50.0, "level_1": 70.0, "level_2": 60.0, "level_3": 50.0}).adds_up
        False
        """
        for total, weights in _FILE["totals"].get(self.table, {}).items():
            expected = sum(self.scores[part] * weight for part, weight in weights.items()) / sum(weights.values())
            if abs(self.scores[total] - expected) >= _ROUNDING:
                return False
        return True


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A table of the paper: which scores of which benchmark stand in it, and which categories are behind them.

    `paper_tables.yaml` says what its values mean.
    """

    benchmark: str
    title: str
    tables: Sequence[str]
    categories: str
    columns: Mapping[str, str]
    note: str = ""


TABLES = tuple(TableLayout(**layout) for layout in _FILE["layouts"])


def paper_rows(tables: Collection[str], models: str = "all") -> list[PaperRow]:
    """Rows of some tables, in the paper's order.

    Args:
        tables: their numbers.
        models: `all`, `none`, or a part of the model's name, in any case.
    """
    if models == "none":
        return []
    part = "" if models == "all" else models.casefold()
    return [row for row in _all_rows() if row.table in tables and part in row.model.casefold()]


@cache
def _all_rows() -> tuple[PaperRow, ...]:
    content = json.loads(Path(__file__).with_name("paper_rows.json").read_text(encoding="utf-8"))
    return tuple(
        PaperRow(table, model, dict(zip(part["scores"], values, strict=True)))
        for table, part in content.items()
        for model, values in part["rows"].items()
    )


def render_report(
    model: str, reports: Mapping[str, EvalReport], *, subset: Subset | None = None, reference_rows: str = "all"
) -> str:
    """All tables of an evaluation as Markdown.

    Args:
        model: name of the row.
        reports: by the name that the benchmark has in the config.
        subset: what they were taken over, named in the captions.
        reference_rows: the paper's rows to show: `all`, `none`, or a part of the model's name.
    """
    parts = [f"# {model}"]
    for name, report in reports.items():
        layouts = [layout for layout in TABLES if layout.benchmark == report.name]
        tables = [_paper_table(layout, model, report, subset, reference_rows) for layout in layouts]
        parts += [*filter(None, tables), _all_scores(name, report, subset)]
    return "\n\n".join(parts) + "\n"


def _paper_table(
    layout: TableLayout, model: str, report: EvalReport, subset: Subset | None, reference_rows: str
) -> str | None:
    """One table of the paper; None where the evaluation has no sample of it."""
    count = sum(bool(re.match(layout.categories, record.category)) for record in report.records)
    if count == 0:
        return None
    percent = {key: 100 * value for key, value in report.scores.items()}
    references = paper_rows(layout.tables, reference_rows)
    rows = [[f"**{model}**", *_cells(layout, percent)]]
    rows += [[row_label(row), *_cells(layout, row.scores)] for row in references]
    lines = [f"## {layout.title}, {_size(count, subset)}", markdown_table(["Model", *layout.columns], rows)]
    if layout.note:
        lines.append(layout.note)
    if references:
        lines.append("Rows below the first are the paper's.")
    if not all(row.adds_up for row in references):
        lines.append(NOT_ADDING_UP)
    return "\n\n".join(lines)


def _all_scores(name: str, report: EvalReport, subset: Subset | None) -> str:
    """Every score of a benchmark, one a line, with the numbers of samples and unparsed answers where it tells them.

    Shares in percent; means of other numbers, whose names have a slash, as they are.
    """
    scores, counts = report.scores, report.counts
    columns = {"n": "", UNPARSED: f"{UNPARSED}/"} if UNPARSED in counts else {"n": ""}
    rows = [
        [
            key,
            f"{value:.3f}" if "/" in key else f"{100 * value:.2f}%",
            *(str(counts.get(prefix + key, "")) for prefix in columns.values()),
        ]
        for key, value in scores.items()
    ]
    lines = [
        f"## {name}: all scores, {_size(len(report.records), subset)}",
        markdown_table(["Score", "Value", *columns], rows),
    ]
    if others := {key: count for key, count in counts.items() if key not in scores and "/" not in key}:
        lines.append("Counts: " + ", ".join(f"{key} {count}" for key, count in others.items()) + ".")
    return "\n\n".join(lines)


def _cells(layout: TableLayout, percent: Mapping[str, float]) -> list[str]:
    return [f"{percent[key]:.2f}%" if key in percent else "–" for key in layout.columns.values()]


def row_label(row: PaperRow) -> str:
    """How a table calls a row of the paper: † if its overall is not the mean of its parts, [D.3] if it is from there.

    >>> row_label(PaperRow("D.3", "Llama-3.2-3B-Instruct (Base)", {}))
    'Llama-3.2-3B-Instruct (Base) [D.3]'
    """
    name = row.model if row.adds_up else f"{row.model} †"
    return f"{name} [D.3]" if row.table == "D.3" else name


def _size(count: int, subset: Subset | None) -> str:
    return f"n = {count}" if subset is None else f"n = {count}: a stratified subset, seed {subset.seed}"
