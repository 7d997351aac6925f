"""The page's title and first sentences: what happened, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from src.wings.comparing.statistics import estimate
from src.wings.reporting.benchmark_charts import base_model
from src.wings.reporting.run_record import RunRecord, methods
from src.wings.reporting.tables import headline_metrics


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
