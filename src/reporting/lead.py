"""The page's title and first sentences: what happened, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from src.evaluation.statistics import estimate
from src.reporting.benchmarks import base_model
from src.reporting.records import RunRecord, methods
from src.reporting.tables import headline_metrics


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


def lead(runs: Sequence[RunRecord]) -> list[str]:
    """What became of the first headline metrics, who is ahead, which runs are unfinished, how many alarms."""
    sentences = [found for key in headline_metrics(runs)[:2] if (found := _told(key, runs))]
    unfinished = [run for run in runs if not run.finished]
    for run in unfinished[:5]:
        planned = run.settings.get("updates.rollout_steps", "unknown")
        sentences.append(f"{run.name} is unfinished: {run.steps_done} of {planned} rollout steps are there.")
    if len(unfinished) > 5:
        sentences.append(f"{len(unfinished) - 5} more runs are unfinished.")
    with_events = [run.name for run in runs if run.events]
    count = sum(len(run.events) for run in runs)
    if count:
        where = "" if len(runs) == 1 else f" in {len(with_events)} of {len(runs)} runs"
        sentences.append(
            f"{count} alarm{'s' if count > 1 else ''} or fault{'s' if count > 1 else ''}{where}: see Health."
        )
    return sentences


def _told(key: str, runs: Sequence[RunRecord]) -> str:
    scored = [run for run in runs if key in run.final and key in run.start]
    if not scored:
        return ""
    start = estimate([run.start[key] for run in scored]).mean
    end = estimate([run.final[key] for run in scored]).mean
    verb = "rose" if end > start else "fell"
    mean = "" if len(scored) == 1 else f", the mean of {len(scored)} runs,"
    told = f"{key}{mean} {verb} from {start:.3f} to {end:.3f}" if end != start else f"{key}{mean} stayed at {end:.3f}"
    order = methods(scored)
    if len(order) == 1:
        steps = max(run.steps_done for run in scored)
        return f"{told} in {steps} rollout steps."
    means = {m: estimate([run.final[key] for run in scored if run.method == m]).mean for m in order}
    best = max(means, key=lambda method: means[method])
    return f"{told}; {best} ends highest, at {means[best]:.3f}."
