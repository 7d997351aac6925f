"""Records → tables: results against the start, each other and the paper, where runs differ, events, origins. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.runs.metric_names import UNSEEN_EXACT_MATCH, VAL_CORRECTNESS, VAL_EXACT_MATCH, VAL_REWARD
from src.wings.comparing.budgets import check_budgets
from src.wings.comparing.comparison import estimate, paired_difference
from src.wings.comparing.run_folders import ComparisonError, RunRecord, methods
from src.wings.evaluation.score_table import NOT_ADDING_UP, TABLES, TableLayout, paper_rows, row_label
from src.wings.reporting.benchmark_charts import base_model, benchmark_names, main_score, same_model
from src.wings.reporting.shown_settings import (
    HIDDEN_SECTIONS,
    is_place,
    is_secret,
    shown_command,
    shown_value,
    without_paths,
)

_HEADLINE = (VAL_EXACT_MATCH, UNSEEN_EXACT_MATCH, VAL_CORRECTNESS, "val/format", VAL_REWARD)
_RESAMPLES = 10_000


class Cell(NamedTuple):
    """One cell.

    Attributes:
        text: what it says.
        kind: `number` (to the right), `name`, `text`, `code`, or `better` and `worse`: numbers in these colours.
        strong: the best of its column, or the row's own.
    """

    text: str
    kind: str = "text"
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first cell of a row is its heading.

    Attributes:
        key: its name in links.
        caption: what it holds.
        head: headings of the columns.
        rows: of as many cells.
        note: below it; may be empty.
        more: rows that are folded away until asked for.
    """

    key: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    more: tuple[tuple[Cell, ...], ...] = ()


def headline_metrics(runs: Sequence[RunRecord]) -> list[str]:
    """What results are told in: validation's exact match, each benchmark's main score, further validation metrics."""
    first, *others = _HEADLINE
    keys = [first, *(main_score(runs, name) for name in benchmark_names(runs)), *others]
    return [key for key in keys if any(key in run.final or key in run.start for run in runs)]


def results(runs: Sequence[RunRecord], baseline: str) -> Table:
    """Each headline metric of each method: before and after training, and against the baseline's same seeds.

    The baseline counts if it is one of several methods.
    """
    order = methods(runs)
    compared = baseline in order and len(order) > 1
    moved = any((run.summary or {}).get("reward_moved", True) for run in runs)  # older runs do not say
    head = ["Metric", *(["Method", "Runs"] if len(runs) > 1 else []), "Start", "End", "Change"]
    rows = []
    for key in headline_metrics(runs):
        of_methods = {method: [run for run in runs if run.method == method] for method in order}
        ends = {method: [run.final[key] for run in of if key in run.final] for method, of in of_methods.items()}
        best = max((sum(end) / len(end) for end in ends.values() if end), default=None)
        for method, end in ends.items():
            start = [run.start[key] for run in of_methods[method] if key in run.start]
            changes = [
                run.final[key] - run.start[key] for run in of_methods[method] if key in run.final and key in run.start
            ]
            is_best = bool(end) and len(order) > 1 and sum(end) / len(end) == best
            who = (Cell(method, "name"), Cell(str(len(of_methods[method])), "number")) if len(runs) > 1 else ()
            what = (_mean(start), _mean(end, is_best), _change(changes, plain=moved and key == VAL_REWARD))
            more = (_against(key, method, baseline, runs),) if compared else ()
            rows.append((Cell(key, "name"), *who, *what, *more))
    note = "± is one standard error over seeds." if len(order) < len(runs) else ""
    if compared:
        head.append(f"Against {baseline}")
        note += " Differences are paired by seed, with the 95 % bootstrap interval of their mean."
    if moved and any(row[0].text == VAL_REWARD for row in rows):
        note += f" Where a schedule moves the reward's range, {VAL_REWARD} moves without the policy: see exact match."
    return Table("results", "Before and after training", tuple(head), tuple(rows), note.strip())


def comparable(runs: Sequence[RunRecord]) -> str:
    """Why differences between the runs are not the method's alone; empty if they are, or there is one run."""
    try:
        check_budgets(runs)
    except ComparisonError as error:
        return without_paths(str(error).replace("<project>/", ""))
    return ""


def differences(runs: Sequence[RunRecord]) -> Table:
    """Settings that not all runs share, without seeds, paths and secrets; runs with the same ones share a column.

    A setting that a run does not have is no different from one that is null.
    """
    keys = sorted({key for run in runs for key, value in run.settings.items() if _shown(key, value)})
    written = {run.name: {key: shown_value(run.settings.get(key)) for key in keys} for run in runs}
    differing = [key for key in keys if len({values[key] for values in written.values()}) > 1]
    columns: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        columns.setdefault(tuple(written[run.name][key] for key in differing), []).append(run)
    rows = tuple(
        (Cell(key, "code"), *(Cell(values[index], "code") for values in columns)) for index, key in enumerate(differing)
    )
    head = ("Setting", *(_together(found, runs) for found in columns.values()))
    return Table("differences", "Settings that differ", head, rows, "Seeds, paths and secrets are left out.")


def events(runs: Sequence[RunRecord]) -> Table:
    """Alarms and faults of all runs, by run and rollout step."""
    rows = tuple(
        (
            *(Cell(run.name, "name"), Cell(str(event.step), "number"), Cell(event.kind.replace("_", " "), "name")),
            *(Cell(without_paths(event.text)), Cell(_steps_with(run, event.kind), "number"), Cell(event.advice)),
        )
        for run in runs
        for event in sorted(run.events, key=lambda event: event.step)
    )
    head = ("Run", "Step", "What", "Found", "Steps with it", "What to do")
    return Table("events", "Alarms and faults", head, rows)


def provenance(runs: Sequence[RunRecord]) -> Table:
    """How each run was made."""
    head = ("Run", "Method", "Seed", "Model", "Rollout steps", "Optimizer steps", "Time", "State", "Best checkpoint")
    return Table("runs", "Runs", head, tuple(_origin(run) for run in runs))


def commands(runs: Iterable[RunRecord]) -> dict[str, str]:
    """Run -> its command, for those that tell it."""
    told = {run.name: (run.summary or {}).get("command") for run in runs}
    return {name: shown_command(command) for name, command in told.items() if isinstance(command, str)}


def versions(runs: Sequence[RunRecord]) -> Table:
    """Versions of Python and packages that the runs ran with; one column where all are the same."""
    found = {run.name: dict((run.summary or {}).get("versions") or {}) for run in runs}
    told = {name: values for name, values in found.items() if values}
    packages = list(dict.fromkeys(package for values in told.values() for package in values))
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, values in told.items():
        columns.setdefault(tuple(str(values.get(package, "–")) for package in packages), []).append(name)
    rows = tuple((Cell(p, "name"), *(Cell(values[i]) for values in columns)) for i, p in enumerate(packages))
    names = ["Version"] if len(columns) == 1 else [", ".join(runs) for runs in columns.values()]
    return Table("versions", "Versions", ("Package", *names), rows)


def paper_tables(runs: Sequence[RunRecord], reference_rows: str = "all") -> list[Table]:
    """The tables whose overall score some run has: a row a method, means over seeds, best of ours in bold.

    The paper's rows about the runs' own base models stand below; the others are folded away. `reference_rows` is `all`,
    `none`, or a part of a model's name.
    """
    made = (_paper_table(layout, runs, reference_rows) for layout in TABLES)
    return [table for table in made if table is not None]


def duration(seconds: object) -> str:
    """A time in its unit.

    >>> duration(5.0), duration(246.0), duration(9000), duration(None)
    ('5 s', '4.1 min', '2.5 h', '–')
    """
    if not isinstance(seconds, int | float):
        return "–"
    minutes = f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 60 else minutes


def _mean(values: Sequence[float], best: bool = False) -> Cell:
    return Cell(str(estimate(values)) if values else "–", "number", best)


def _change(values: Sequence[float], *, plain: bool) -> Cell:
    if not values:
        return Cell("–", "number")
    mean = estimate(values).mean
    return Cell(f"{mean:+.3f}", "number" if plain else "better" if mean > 0 else "worse" if mean < 0 else "number")


def _against(key: str, method: str, baseline: str, runs: Sequence[RunRecord]) -> Cell:
    by_seed: dict[str, dict[int, float]] = {method: {}, baseline: {}}
    for run in runs:
        if run.method in by_seed and run.seed is not None and key in run.final:
            by_seed[run.method][run.seed] = run.final[key]
    found = paired_difference(by_seed[method], by_seed[baseline], _RESAMPLES, seed=0)
    if method == baseline or found is None:
        return Cell("–", "number")
    clear = found.interval is not None and (found.interval[0] > 0 or found.interval[1] < 0)
    return Cell(str(found), ("better" if found.mean > 0 else "worse") if clear else "number")


def _together(found: Sequence[RunRecord], runs: Sequence[RunRecord]) -> str:
    """Names of runs; of a method's runs, if all of them are there, the method's."""
    complete = [m for m in methods(found) if _of(found, m) == _of(runs, m) and len(_of(runs, m)) > 1]
    return ", ".join([*complete, *(run.name for run in found if run.method not in complete)])


def _of(runs: Sequence[RunRecord], method: str) -> list[str]:
    return [run.name for run in runs if run.method == method]


def _shown(key: str, value: object) -> bool:
    """Whether a report may show a setting and a reader may want it: no machinery, no seed, secret or place."""
    section, *_, last = key.split(".") if "." in key else (key, key)
    if section in HIDDEN_SECTIONS or last == "seed" or last.startswith("_") or is_secret(key):
        return False
    return last == "path" or not is_place(value)


def _steps_with(run: RunRecord, alarm: str) -> str:
    counts = run.curve(f"health/{alarm}_steps")[1]
    return f"{counts[-1]:.0f}" if counts else "–"


def _origin(run: RunRecord) -> tuple[Cell, ...]:
    summary: Mapping[str, object] = run.summary or {}
    planned = run.settings.get("updates.rollout_steps")
    steps = f"{run.steps_done}" if planned in (None, run.steps_done) else f"{run.steps_done} of {planned}"
    best = summary.get("best_checkpoint")
    state = "finished" if run.finished else "unfinished"
    if summary.get("resumed_from"):
        state += ", resumed"
    score = f"{best['monitor']} {best['score']:.3f}" if isinstance(best, dict) and "score" in best else "–"
    return (
        *(Cell(run.name, "name"), Cell(run.method), Cell("–" if run.seed is None else str(run.seed), "number")),
        *(Cell(base_model(run)), Cell(steps, "number"), Cell(str(summary.get("optimizer_steps", "–")), "number")),
        Cell(duration(summary.get("seconds")), "number"),
        *(Cell(state, "text", not run.finished), Cell(score)),
    )


def _paper_table(layout: TableLayout, runs: Sequence[RunRecord], reference_rows: str) -> Table | None:
    keys = [f"{layout.benchmark}/{score}" for score in layout.columns.values()]
    ours = [row for method in methods(runs) if (row := _paper_row(method, runs, keys)) is not None]
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
        notes.append(NOT_ADDING_UP)
    return Table(
        f"paper-{layout.tables[0].lower().replace('.', '-')}",
        layout.title,
        ("Model", *layout.columns),
        tuple([*rows, *near]),
        " ".join(filter(None, notes)),
        tuple(far),
    )


def _paper_row(method: str, runs: Sequence[RunRecord], keys: Sequence[str]) -> tuple[str, list[float | None]] | None:
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
