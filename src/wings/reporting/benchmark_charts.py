"""Benchmark scores → bars over rollout steps and at the end, and the radar of the paper's Figure 2. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.runs.metric_names import VAL_EXACT_MATCH
from src.wings.comparing.run_folders import RunRecord
from src.wings.evaluation.score_table import TABLES, PaperRow, paper_rows
from src.wings.reporting.charts import TEXTS, Chart, Panel, Series

_TOTALS = ("overall", "multi_turn", "single_turn")
_SHOWN_PAPER_ROWS = ("(GRPO)", "(Ours, ResT)")


def benchmark_names(runs: Sequence[RunRecord]) -> list[str]:
    """Names of the benchmarks that some run has scores of, sorted.

    >>> benchmark_names([RunRecord("a", "rest", 1, {}, benchmarks={0: {"bfcl/live": 0.5, "api_bank/overall": 0.5}})])
    ['api_bank', 'bfcl']
    """
    return sorted({key.split("/")[0] for run in runs for scores in run.benchmarks.values() for key in scores})


def main_score(runs: Sequence[RunRecord], benchmark: str) -> str:
    """The metric that stands for a benchmark: its overall score, or else the first total or score that there is."""
    scores = _scores(runs, benchmark)
    return f"{benchmark}/{next((total for total in _TOTALS if total in scores), scores[0])}"


def benchmark_bars(runs: Sequence[RunRecord]) -> Chart:
    """Each benchmark's main score by rollout step, and all its scores at the end, with those before training.

    Runs without a benchmark have validation's exact match by kind of dialogue instead.
    """
    panels = []
    for name in benchmark_names(runs):
        panels += [_by_step(runs, name), _at_the_end(runs, f"{name}: at the end", name, _scores(runs, name))]
    tags = _tags(runs)
    if not panels and tags:
        panels.append(_at_the_end(runs, "Exact match in validation, by kind of dialogue", VAL_EXACT_MATCH, tags))
    about = TEXTS["benchmark_bars"]
    return Chart("benchmark_bars", about["title"], about["caption"], tuple(filter(None, panels)), "bars")


def benchmark_radar(runs: Sequence[RunRecord]) -> Chart:
    """Each benchmark at the end, a spoke a part (Figure 2), for benchmarks of three parts or more.

    The paper's rows of the same base models stand beside.
    """
    about, panels, names = TEXTS["benchmark_radar"], [], benchmark_names(runs)
    for name in names:
        scores = _scores(runs, name)
        known = {key: label for key, label in about["axes"].get(name, {}).items() if key in scores}
        axes = known or {score: _label(score) for score in scores if score not in _TOTALS}
        panels.append(_radar(runs, name, name, axes, _paper_series(runs, name, list(axes))))
    if not panels:
        panels.append(
            _radar(runs, "Exact match in validation", VAL_EXACT_MATCH, {tag: _label(tag) for tag in _tags(runs)})
        )
    caption = about["caption" if about["axes"].keys() & names else "other_caption"]
    return Chart("benchmark_radar", about["title"], caption, tuple(filter(None, panels)), "radar")


def base_model(run: RunRecord) -> str:
    """The model that a run starts from: the last part of its policy's folder, hub id or file.

    >>> base_model(RunRecord("a", "rest", 1, {}, settings={"policy.path": None, "policy.hub_id": "Qwen/Qwen3-8B"}))
    'Qwen3-8B'
    """
    places = (run.settings.get(f"policy.{key}") for key in ("path", "hub_id", "gguf_file", "package"))
    found = next((place for place in places if isinstance(place, str) and place), "unknown")
    return found.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def same_model(row: PaperRow, model: str) -> bool:
    """Whether a row of the paper is about a model, by name; `Instruct` does not count.

    >>> row = PaperRow("1", "Qwen3-4B-2507 (GRPO)", {})
    >>> same_model(row, "Qwen3-4B-Instruct-2507"), same_model(row, "Qwen3-4B-Thinking-2507")
    (True, False)
    """
    names = (row.model.split(" (")[0], model)
    ours, theirs = (name.casefold().replace("-instruct", "").replace("_", "-") for name in names)
    return ours == theirs


def _scores(runs: Sequence[RunRecord], benchmark: str) -> list[str]:
    """A benchmark's scores, its table's columns where the paper has one; totals first."""
    keys = {key for run in runs for scores in (*run.benchmarks.values(), run.final) for key in scores}
    own = {key.split("/", 1)[1] for key in keys if key.startswith(f"{benchmark}/") and key.count("/") == 1}
    found = sorted(own - {"seconds"})
    columns = [score for table in TABLES if table.benchmark == benchmark for score in table.columns.values()]
    kept = [score for score in dict.fromkeys(columns) if score in found] or found
    return sorted(kept, key=lambda score: _TOTALS.index(score) if score in _TOTALS else len(_TOTALS))


def _tags(runs: Sequence[RunRecord]) -> list[str]:
    """Kinds of dialogues in validation."""
    prefix = f"{VAL_EXACT_MATCH}/"
    return sorted({key.removeprefix(prefix) for run in runs for key in run.final if key.startswith(prefix)})


def _by_step(runs: Sequence[RunRecord], benchmark: str) -> Panel | None:
    score = main_score(runs, benchmark)
    steps = sorted({step for run in runs for step, values in run.benchmarks.items() if score in values})
    series = tuple(
        Series(run.name, run.method, tuple(map(steps.index, x)), y) for run in runs for x, y in [run.curve(score)] if x
    )
    title = f"{benchmark}: {_label(score.split('/', 1)[1])} by rollout step"
    return Panel(title, "share", series, tuple(f"step {step}" for step in steps)) if series else None


def _at_the_end(runs: Sequence[RunRecord], title: str, prefix: str, scores: Sequence[str]) -> Panel | None:
    series = []
    for run in runs:
        indices = tuple(index for index, score in enumerate(scores) if f"{prefix}/{score}" in run.final)
        keys = [f"{prefix}/{scores[index]}" for index in indices]
        start = tuple(run.start[key] for key in keys) if all(key in run.start for key in keys) else ()
        if indices:
            series.append(Series(run.name, run.method, indices, tuple(run.final[key] for key in keys), start))
    return Panel(title, "share", tuple(series), tuple(map(_label, scores))) if series else None


def _radar(
    runs: Sequence[RunRecord], title: str, prefix: str, axes: Mapping[str, str], more: tuple[Series, ...] = ()
) -> Panel | None:
    if len(axes) < 3:
        return None
    series = [
        *(_spokes(run.name, run.method, {key: run.final.get(f"{prefix}/{key}") for key in axes}) for run in runs),
        *more,
    ]
    whole = tuple(found for found in series if found is not None)
    return Panel(title, "share", whole, tuple(axes.values())) if whole else None


def _spokes(run: str, group: str, values: Mapping[str, float | None]) -> Series | None:
    numbers = [value for value in values.values() if value is not None]
    return Series(run, group, tuple(range(len(numbers))), tuple(numbers)) if len(numbers) == len(values) else None


def _paper_series(runs: Sequence[RunRecord], benchmark: str, axes: Sequence[str]) -> tuple[Series, ...]:
    """Rows of the paper for the runs' base models, joined over its tables, where they have every axis."""
    tables = [number for table in TABLES if table.benchmark == benchmark for number in table.tables]
    joined: dict[str, dict[str, float]] = {}
    for row in paper_rows(tables):
        if row.model.endswith(_SHOWN_PAPER_ROWS) and any(same_model(row, base_model(run)) for run in runs):
            joined.setdefault(row.model, {}).update({key: value / 100 for key, value in row.scores.items()})
    made = (
        _spokes("", f"paper: {model}", {axis: scores.get(axis) for axis in axes}) for model, scores in joined.items()
    )
    return tuple(series for series in made if series is not None)


def _label(score: str) -> str:
    return score.replace("_", " ")
