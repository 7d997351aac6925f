"""A comparison as Markdown tables and a chart of its curves. Formats numbers, computes none but trailing means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from src.protocol.types import Region
from src.runs.markdown_table import markdown_table
from src.runs.metric_names import VAL_CORRECTNESS, VAL_EXACT_MATCH, VAL_REWARD
from src.wings.comparing.budgets import method_settings, shared_settings, start_gap
from src.wings.comparing.comparison import (
    ComparisonSettings,
    MethodRow,
    validated,
)
from src.wings.comparing.run_folders import RunRecord

_NOTES = """\
- Start, End: exact match of greedy completions of the validation prompts, before the first rollout step and after the \
last; ± standard error over seeds. A seed also draws the corpus, so that its prompts are part of the error.
- Difference: to {baseline} on the same seed, mean and 95 % percentile bootstrap interval ({resamples:,} resamples of \
seeds). With five seeds it covers the true mean about 84 % of the time rather than 95 %. One seed has no interval.
- Steps to {bar:g}: rollout steps done when the mean {metric} of the last {window} rollout steps is first at {bar:g}; \
mean over the seeds that got there, with their number. A mean over some of the seeds flatters the method.
- Area: mean {metric} over all rollout steps.
- Before the first step, methods of one seed are at most {gap:.3f} of exact match apart, where that was validated."""


def render_comparison(
    rows: Sequence[MethodRow], runs: Sequence[RunRecord], settings: ComparisonSettings, unfinished: Sequence[str] = ()
) -> str:
    """The whole comparison of these runs as Markdown, with the names of the unfinished ones that were left out."""
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    notes = _NOTES.format(
        baseline=settings.baseline,
        resamples=settings.resamples,
        bar=settings.bar,
        metric=settings.training_metric,
        window=settings.window,
        gap=max(start_gap(runs).values(), default=0.0),
    )
    parts = [
        f"# {len(rows)} methods, seeds {', '.join(map(str, seeds))}",
        results_table(rows, settings),
        notes,
        "## Correctness and reward",
        _further_table(rows),
        "Correctness is in [0, 1] and compared. Reward is not: a schedule moves its scale with the rollout step, and "
        "not every method has the same one.",
        "## Exact match at the end, by seed",
        _by_seed(rows, runs, seeds),
        "## Where the gradient goes",
        _shares(rows),
        "Share of sum |A| w / T, the size of what tokens contribute to the loss, and in brackets of the sampled "
        "tokens; means over rollout steps and seeds.",
        _spread(rows),
        "Mean entropy of the policy at a region's tokens in nats; share of prompt groups whose completions all earn "
        "the same and teach nothing; standard deviation of rewards in a group, on each method's own scale.",
        "## What sets the methods apart",
        "\n".join(f"- {method}: {_listed(values)}" for method, values in sorted(method_settings(runs).items())),
        "## What all runs share",
        "\n".join(["```yaml", *(f"{key}: {_plain(value)}" for key, value in shared_settings(runs).items()), "```"]),
    ]
    if unfinished:
        parts.insert(1, f"**Left out, unfinished: {', '.join(unfinished)}.**")
    return "\n\n".join(parts) + "\n"


def results_table(rows: Sequence[MethodRow], settings: ComparisonSettings) -> str:
    """Exact match before and after training, how soon and how high it was on the way; one line a method."""
    head = ["Method", "Seeds", "Start", "End", "Difference", f"Steps to {settings.bar:g}", "Area", "Difference"]
    lines = [
        [
            *(row.method, str(len(row.seeds)), *_start_and_end(row, VAL_EXACT_MATCH)),
            *(_difference(row, VAL_EXACT_MATCH), _steps(row), str(row.area), _difference(row, "area")),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _further_table(rows: Sequence[MethodRow]) -> str:
    head = ["Method", "Correctness, start", "End", "Difference", "Reward, start", "End"]
    lines = [
        [
            *(row.method, *_start_and_end(row, VAL_CORRECTNESS), _difference(row, VAL_CORRECTNESS)),
            *_start_and_end(row, VAL_REWARD),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _start_and_end(row: MethodRow, key: str) -> list[str]:
    return [str(row.start[key]) if row.start else "–", str(row.final[key])]


def _difference(row: MethodRow, key: str) -> str:
    if (found := row.differences.get(key)) is None:
        return "–"
    pairs = len(found.by_seed)
    return f"{found}" + (f" ({pairs} of {len(row.seeds)})" if pairs < len(row.seeds) else "")


def _steps(row: MethodRow) -> str:
    if row.steps_to_bar is None:
        return f"– (0 of {len(row.seeds)})"
    return f"{row.steps_to_bar.mean:.1f} ({row.steps_to_bar.count} of {len(row.seeds)})"


def _by_seed(rows: Sequence[MethodRow], runs: Sequence[RunRecord], seeds: Sequence[int]) -> str:
    final = {(run.method, run.seed): f"{validated(run, 'final', VAL_EXACT_MATCH):.3f}" for run in runs}
    lines = [[row.method, *(final.get((row.method, seed), "–") for seed in seeds)] for row in rows]
    return markdown_table(["Method", *map(str, seeds)], lines)


def _shares(rows: Sequence[MethodRow]) -> str:
    def cell(row: MethodRow, region: str) -> str:
        return f"{_number(row, f'gradient_share/{region}')} ({_number(row, f'token_share/{region}')})"

    regions = [region.label for region in Region]
    return markdown_table(
        ["Gradient (tokens)", *regions], [[row.method, *(cell(row, r) for r in regions)] for row in rows]
    )


def _spread(rows: Sequence[MethodRow]) -> str:
    regions = [region.label for region in Region]
    keys = [*(f"entropy/{region}" for region in regions), "group/zero_variance", "group/reward_std"]
    head = ["Entropy", *regions, "zero variance", "reward std"]
    return markdown_table(head, [[row.method, *(_number(row, key) for key in keys)] for row in rows])


def _number(row: MethodRow, key: str) -> str:
    return f"{row.diagnosis[key]:.3f}" if key in row.diagnosis else "–"


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"`{key}={_plain(value)}`" for key, value in values.items()) or "nothing"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
