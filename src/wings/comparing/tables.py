"""A comparison as Markdown tables and a chart of its curves. Formats numbers, computes none but trailing means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, Template

from src.protocol.types import Region
from src.runs.markdown_table import markdown_table
from src.runs.metric_names import VAL_CORRECTNESS, VAL_EXACT_MATCH, VAL_REWARD
from src.wings.comparing.budgets import method_settings, shared_settings, start_gap
from src.wings.comparing.comparison import ComparisonSettings, MethodRow, validated
from src.wings.comparing.run_folders import RunRecord


def render_comparison(
    rows: Sequence[MethodRow], runs: Sequence[RunRecord], settings: ComparisonSettings, unfinished: Sequence[str] = ()
) -> str:
    """The whole comparison of these runs as Markdown, with the names of the unfinished ones that were left out."""
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    text = Path(__file__).with_name("comparison.md.jinja").read_text(encoding="utf-8")
    return Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined).render(
        methods=len(rows),
        seeds=seeds,
        unfinished=unfinished,
        settings=settings,
        bar=f"{settings.bar:g}",
        gap=max(start_gap(runs).values(), default=0.0),
        results=results_table(rows, settings),
        further=_further_table(rows),
        by_seed=_by_seed(rows, runs, seeds),
        shares=_shares(rows),
        spread=_spread(rows),
        apart=sorted(method_settings(runs).items()),
        shared=shared_settings(runs),
        plain=_plain,
    )


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
    return [str(values.get(key, "–")) for values in (row.start, row.final)]


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


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
