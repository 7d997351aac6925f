"""Final benchmark scores in the layout of the paper's tables, with its rows below. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.wings.comparing.statistics import estimate
from src.wings.evaluation.score_table import TABLES, TableLayout, paper_rows, row_label
from src.wings.reporting.benchmark_scores import base_model, same_model
from src.wings.reporting.run_record import RunRecord, methods
from src.wings.reporting.tables import Cell, Table


def paper_tables(runs: Sequence[RunRecord], reference_rows: str = "all") -> list[Table]:
    """The tables whose overall score some run has: a row a method, means over seeds, best of ours in bold.

    The paper's rows about the runs' own base models stand below; the others are folded away.

    Args:
        runs: of any kind.
        reference_rows: the paper's rows to take: `all`, `none`, or a part of the model's name.
    """
    made = (_table(layout, runs, reference_rows) for layout in TABLES)
    return [table for table in made if table is not None]


def _table(layout: TableLayout, runs: Sequence[RunRecord], reference_rows: str) -> Table | None:
    keys = [f"{layout.benchmark}/{score}" for score in layout.columns.values()]
    ours = [row for method in methods(runs) if (row := _row(method, runs, keys)) is not None]
    if not ours:
        return None
    columns = [[found for row in ours if (found := row[1][index]) is not None] for index in range(len(keys))]
    best = [max(column, default=None) for column in columns]
    rows = [
        (
            Cell(name, "name", True),
            *(_percent(value, len(ours) > 1 and value == top) for value, top in zip(values, best, strict=True)),
        )
        for name, values in ours
    ]
    models = {base_model(run) for run in runs}
    near: list[tuple[Cell, ...]] = []
    far: list[tuple[Cell, ...]] = []
    for paper in paper_rows(layout.tables, reference_rows):
        cells = (Cell(row_label(paper), "name"), *(_percent(paper.scores.get(s)) for s in layout.columns.values()))
        (near if any(same_model(paper, model) for model in models) else far).append(cells)
    notes = [layout.note, "Rows below ours are the paper's." if near or far else ""]
    if any("†" in cells[0].text for cells in (*near, *far)):
        notes.append("† In the paper, this row's overall is not the mean of its parts.")
    return Table(
        f"paper-{layout.tables[0].lower().replace('.', '-')}",
        layout.title,
        ("Model", *layout.columns),
        tuple([*rows, *near]),
        " ".join(filter(None, notes)),
        tuple(far),
    )


def _row(method: str, runs: Sequence[RunRecord], keys: Sequence[str]) -> tuple[str, list[float | None]] | None:
    """(label, percentages): means over the method's runs that have the scores; None if none has the first one."""
    scored = [run for run in runs if run.method == method and keys[0] in run.final]
    if not scored:
        return None
    model = ", ".join(dict.fromkeys(base_model(run) for run in scored))
    seeds = f", {len(scored)} seeds" if len(scored) > 1 else ""
    return f"{model} ({method}{seeds})", [_score([run.final for run in scored], key) for key in keys]


def _score(finals: Sequence[Mapping[str, float]], key: str) -> float | None:
    values = [final[key] for final in finals if key in final]
    return 100 * estimate(values).mean if len(values) == len(finals) else None


def _percent(value: float | None, strong: bool = False) -> Cell:
    return Cell("–" if value is None else f"{value:.2f}%", "number", strong)
