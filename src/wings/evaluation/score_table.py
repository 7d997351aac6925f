"""Results as tables in the paper's layout, with the paper's rows below for reference.

The rows are those of Tables 1, 2, D.1, D.2 and D.3 (arXiv 2509.21826), in `paper_rows.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from src.wings.evaluation.benchmark import EvalReport, Subset

_ROUNDING = 0.0101
"""Percentage points that rounding to two digits can put between a total and its parts."""

TOTALS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "1": (
        "multi_turn",
        {f"multi_turn_{part}": 1 for part in ("base", "miss_func", "miss_param", "long_context")},
    ),
    "2": ("overall", {"level_1": 399, "level_2": 67, "level_3": 131}),
    "D.1": ("single_turn", {"non_live_ast": 1150, "live": 1351}),
    "D.2": ("overall", {"level_1": 399, "level_2": 67, "level_3": 131}),
}
"""For each table the score that is a weighted mean of others, and the weights.

The paper does not say how D.1 weighs; all 28 rows follow these numbers of cases with calls. Its "Non-live" is the
leaderboard's Non-Live AST column, which D.3 calls by its full name (see `src.wings.evaluation.bfcl.scores`).
"""
_DAGGER = "† In the paper, this row's overall is not the mean of its parts."


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
        if self.table not in TOTALS:
            return True
        total, weights = TOTALS[self.table]
        expected = sum(self.scores[part] * weight for part, weight in weights.items()) / sum(weights.values())
        return abs(self.scores[total] - expected) < _ROUNDING


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A table of the paper: which scores of which benchmark stand in it, and which categories are behind them."""

    benchmark: str
    title: str
    tables: tuple[str, ...]
    columns: Mapping[str, str]
    holds: Callable[[str], bool]
    note: str = ""


TABLES = (
    TableLayout(
        "bfcl",
        "BFCL multi-turn (Table 1)",
        ("1", "D.3"),
        {
            "Overall": "multi_turn",
            "Base": "multi_turn_base",
            "Miss Func": "multi_turn_miss_func",
            "Miss Param": "multi_turn_miss_param",
            "Long Context": "multi_turn_long_context",
        },
        lambda category: category.startswith("multi_turn"),
    ),
    TableLayout(
        "bfcl",
        "BFCL single-turn (Table D.1)",
        ("D.1", "D.3"),
        {
            "Overall": "single_turn",
            "Non-live": "non_live_ast",
            "Live": "live",
            "Rel.": "relevance_detection",
            "Irrel.": "irrelevance_detection",
        },
        lambda category: not category.startswith("multi_turn"),
        "Non-live is the leaderboard's Non-Live AST, without irrelevance; Overall weighs it and Live by 1,150 and "
        "1,351. The paper's rows follow this.",
    ),
    TableLayout(
        "api_bank",
        "API-Bank (Table 2)",
        ("2", "D.2"),
        {"Overall": "overall", "Level 1": "level_1", "Level 2": "level_2", "Level 3": "level_3"},
        lambda category: True,
    ),
)


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
    count = sum(layout.holds(record.category) for record in report.records)
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
        lines.append(_DAGGER)
    return "\n\n".join(lines)


def _all_scores(name: str, report: EvalReport, subset: Subset | None) -> str:
    """Every score of a benchmark, one a line, with the number of samples where the benchmark tells it."""
    rows = [[key, f"{100 * value:.2f}%", str(report.counts.get(key, ""))] for key, value in report.scores.items()]
    lines = [
        f"## {name}: all scores, {_size(len(report.records), subset)}",
        markdown_table(["Score", "Value", "n"], rows),
    ]
    if others := {key: count for key, count in report.counts.items() if key not in report.scores}:
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


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A Markdown table with padded columns, numbers to the right.

    >>> print(markdown_table(["Model", "Overall"], [["tiny", "50.00%"]]))
    | Model | Overall |
    |-------|--------:|
    | tiny  |  50.00% |
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    left, *right = widths
    lines = [
        " | ".join([row[0].ljust(left), *(cell.rjust(width) for cell, width in zip(row[1:], right, strict=True))])
        for row in (head, *rows)
    ]
    rule = "|".join(["-" * (left + 2), *("-" * (width + 1) + ":" for width in right)])
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])
