"""Runs in words: title and first sentences of the page, and the texts in Markdown that dashboards show. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from src.runs.markdown_table import markdown_table
from src.runs.metric_names import ENTROPY, EXACT_MATCH, NLL, RESPONSE_TOKENS, REWARD
from src.wings.comparing.comparison import estimate
from src.wings.comparing.run_folders import RunRecord, methods
from src.wings.reporting.benchmark_charts import base_model
from src.wings.reporting.shown_settings import shown_settings
from src.wings.reporting.tables import Table, events, headline_metrics, results

_SPECIAL = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|*_`[]\\~#!"} | {ord("\n"): " ↵ ", ord("\r"): ""}
_LONGEST = 600
_BFCL = "src.environments.bfcl.environment.BfclEnvironment"
_NOW = (REWARD, EXACT_MATCH, ENTROPY, RESPONSE_TOKENS, "train/loss", NLL)


def title(runs: Sequence[RunRecord]) -> str:
    """Methods, seeds and model.

    >>> title([RunRecord("a", "rest", 1, {}, settings={"policy.path": "Qwen/Qwen3-8B"})])
    'rest, seed 1, on Qwen3-8B'
    """
    order = methods(runs)
    models = list(dict.fromkeys(base_model(run) for run in runs))
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    who = ", ".join(order) if len(order) < 5 else f"{len(order)} methods"
    which = f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""
    return f"{who}{which}, on {models[0] if len(models) == 1 else f'{len(models)} models'}"


def sentences(runs: Sequence[RunRecord]) -> list[str]:
    """What became of the first headline metrics, who is ahead, which runs are unfinished, how many alarms."""
    told = [found for key in headline_metrics(runs)[:2] if (found := _told(key, runs))]
    unfinished = [run for run in runs if not run.finished]
    for run in unfinished[:5]:
        planned = run.settings.get("updates.rollout_steps", "unknown")
        told.append(f"{run.name} is unfinished: {run.steps_done} of {planned} rollout steps are there.")
    if len(unfinished) > 5:
        told.append(f"{len(unfinished) - 5} more runs are unfinished.")
    with_events = [run.name for run in runs if run.events]
    count = sum(len(run.events) for run in runs)
    if count:
        where = "" if len(runs) == 1 else f" in {len(with_events)} of {len(runs)} runs"
        told.append(f"{count} alarm{'s' if count > 1 else ''} or fault{'s' if count > 1 else ''}{where}: see Health.")
    return told


def trained_on_tests(runs: Sequence[RunRecord]) -> str:
    """That BFCL's scores of runs are worth nothing, as they trained on its test cases; empty if none did.

    >>> settings = {"data.train.environment._target_": _BFCL, "data.train.environment.train_on_test": True}
    >>> trained_on_tests([RunRecord("a", "rest", 1, {}, settings=settings), RunRecord("b", "rest", 2, {})])
    "a trained on BFCL's multi-turn test cases (environment.train_on_test): its BFCL scores are worth nothing."
    """
    found = [run.name for run in runs if _trains_on_tests(run.settings)]
    if not found:
        return ""
    whose = "its" if len(found) == 1 else "their"
    return (
        f"{', '.join(found)} trained on BFCL's multi-turn test cases (environment.train_on_test): {whose} BFCL scores "
        "are worth nothing."
    )


def overview(run: RunRecord) -> str:
    """What became of a run so far: sentences, headline numbers before training and now, the last step, health."""
    tested = trained_on_tests([run])
    parts = [f"# {plain(title([run]))}", f"**{plain(tested)}**" if tested else "", plain(" ".join(sentences([run])))]
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
    """A run's config, keys joined by dots, as YAML, without secrets and paths of the machine.

    >>> print(config({"seed": 1, "data.path": "/srv/ann/train.json", "logger.wandb.api_key": "x"}))
        data:
          path: …/train.json
        seed: 1
    """
    return textwrap.indent(yaml.safe_dump(shown_settings(settings), allow_unicode=True, width=1000), " " * 4).rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    r"""A table; texts are plain, and long ones cut in their middle.

    >>> print(table(("a", "b"), [("x|y\nz", 0.5), (None, 2)]))
    | a            | b   |
    |--------------|-----|
    | x&#124;y ↵ z | 0.5 |
    | –            | 2   |
    """
    return markdown_table(list(map(plain, head)), [list(map(_written, row)) for row in rows], numbers=False)


def plain(text: str) -> str:
    """Text that reads the same in Markdown, on one line.

    >>> plain("<think> a_b *c*")
    '&#60;think&#62; a&#95;b &#42;c&#42;'
    """
    return text.translate(_SPECIAL)


def _trains_on_tests(settings: Mapping[str, object]) -> bool:
    """Whether BFCL's environment is among the training data and gives its test cases for it."""
    given = (
        key.rpartition(".")[0] for key, value in settings.items() if key.endswith(".train_on_test") and value is True
    )
    return any(where.startswith("data.train") and settings.get(f"{where}._target_") == _BFCL for where in given)


def _told(key: str, runs: Sequence[RunRecord]) -> str:
    scored = [run for run in runs if key in run.final]
    order = methods(scored)
    if not scored:
        return ""
    if len(order) == 1:
        return _of_one_method(key, scored)
    ends = {m: estimate([run.final[key] for run in scored if run.method == m]).mean for m in order}
    best, worst = max(ends, key=lambda m: ends[m]), min(ends, key=lambda m: ends[m])
    return f"{key} ends highest with {best}, at {ends[best]:.3f}, and lowest with {worst}, at {ends[worst]:.3f}."


def _of_one_method(key: str, runs: Sequence[RunRecord]) -> str:
    measured = [run for run in runs if key in run.start]
    steps = max(run.steps_done for run in runs)
    mean = "" if len(runs) == 1 else f", the mean of {len(runs)} runs,"
    end = estimate([run.final[key] for run in runs]).mean
    if len(measured) < len(runs):
        return f"{key}{mean} is {end:.3f} after {steps} rollout steps."
    start = estimate([run.start[key] for run in runs]).mean
    verb = "rose" if end > start else "fell" if end < start else "went"
    return f"{key}{mean} {verb} from {start:.3f} to {end:.3f} in {steps} rollout steps."


def _table(made: Table) -> str:
    shown = table(made.head, [[cell.text for cell in row] for row in made.rows])
    return f"{shown}\n\n{plain(made.note)}".rstrip()


def _written(value: str | float | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, str):
        return f"{value:.6g}"
    left, kept = len(value) - _LONGEST, _LONGEST // 2
    return plain(value if left <= 0 else f"{value[:kept]} … ({left:,} more characters) … {value[-kept:]}")
