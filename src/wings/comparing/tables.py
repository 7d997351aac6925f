"""A comparison as Markdown tables and a figure of its curves. Formats numbers, computes none but the curves' means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.protocol.types import Region
from src.wings.comparing.comparison import ComparisonSettings, MethodRow, PairedDifference, Run
from src.wings.comparing.statistics import Estimate, trailing_mean
from src.wings.evaluation.score_table import markdown_table

_COLOURS = ("#332288", "#cc6677", "#117733", "#44aa99", "#882255", "#999933", "#88ccee", "#aa4499")
"""Paul Tol's muted scheme, told apart with any colour vision; the baseline is black."""
_STYLES = ("-", "--", "-.", ":")
_PANELS = {
    "{training_metric}": "{training_metric}, trailing mean of {window}",
    "train/entropy": "policy entropy (nats a token)",
    "response/tokens": "response length (tokens)",
}
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
    rows: Sequence[MethodRow],
    runs: Sequence[Run],
    settings: ComparisonSettings,
    *,
    shared: Mapping[str, object],
    differing: Mapping[str, Mapping[str, object]],
    start_gap: Mapping[int, float],
    unfinished: Sequence[str] = (),
) -> str:
    """The whole report as Markdown.

    Args:
        rows: of `compare`.
        runs: that they were computed from.
        settings: of `compare`.
        shared: settings of all runs.
        differing: method -> settings that set it apart.
        start_gap: seed -> largest difference in exact match at the start.
        unfinished: names of runs that were left out.
    """
    seeds = sorted({run.seed for run in runs})
    notes = _NOTES.format(
        baseline=settings.baseline,
        resamples=settings.resamples,
        bar=settings.bar,
        metric=settings.training_metric,
        window=settings.window,
        gap=max(start_gap.values(), default=0.0),
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
        "\n".join(f"- {method}: {_listed(values)}" for method, values in sorted(differing.items())),
        "## What all runs share",
        "\n".join(["```yaml", *(f"{key}: {_plain(value)}" for key, value in shared.items()), "```"]),
    ]
    if unfinished:
        parts.insert(1, f"**Left out, unfinished: {', '.join(unfinished)}.**")
    return "\n\n".join(parts) + "\n"


def results_table(rows: Sequence[MethodRow], settings: ComparisonSettings) -> str:
    """Exact match before and after training, how soon and how high it was on the way; one line a method."""
    head = ["Method", "Seeds", "Start", "End", "Difference", f"Steps to {settings.bar:g}", "Area", "Difference"]
    lines = [
        [
            *(row.method, str(len(row.seeds)), *_start_and_end(row, "val/exact_match")),
            *(_difference(row, "val/exact_match"), _steps(row), _estimate(row.area), _difference(row, "area")),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _further_table(rows: Sequence[MethodRow]) -> str:
    head = ["Method", "Correctness, start", "End", "Difference", "Reward, start", "End"]
    lines = [
        [
            *(row.method, *_start_and_end(row, "val/correctness"), _difference(row, "val/correctness")),
            *_start_and_end(row, "val/reward"),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _start_and_end(row: MethodRow, key: str) -> list[str]:
    return [_estimate(row.start[key]) if row.start else "–", _estimate(row.final[key])]


def _estimate(value: Estimate) -> str:
    return f"{value.mean:.3f}" + ("" if value.error is None else f" ± {value.error:.3f}")


def _difference(row: MethodRow, key: str) -> str:
    found: PairedDifference | None = row.differences.get(key)
    if found is None:
        return "–"
    interval = "" if found.interval is None else f" [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"
    pairs = len(found.by_seed)
    return f"{found.mean:+.3f}{interval}" + (f" ({pairs} of {len(row.seeds)})" if pairs < len(row.seeds) else "")


def _steps(row: MethodRow) -> str:
    if row.steps_to_bar is None:
        return f"– (0 of {len(row.seeds)})"
    return f"{row.steps_to_bar.mean:.1f} ({row.steps_to_bar.count} of {len(row.seeds)})"


def _by_seed(rows: Sequence[MethodRow], runs: Sequence[Run], seeds: Sequence[int]) -> str:
    final = {(run.method, run.seed): f"{run.validation('final', 'val/exact_match'):.3f}" for run in runs}
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


def draw_curves(path: Path, runs: Sequence[Run], methods: Sequence[str], settings: ComparisonSettings) -> None:
    """Training metric (trailing mean), entropy and response length after each rollout step, one line a method.

    A line is the mean over seeds, its band one standard error. The first method is black.

    Args:
        path: the image to write.
        runs: all of one length.
        methods: in the legend's order.
        settings: names the training metric and its window.
    """
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    options = {"training_metric": settings.training_metric, "window": settings.window}
    panels = [(key.format(**options), title.format(**options)) for key, title in _PANELS.items()]
    for index, (axes, (key, title)) in enumerate(zip(figure.subplots(1, len(panels)), panels, strict=True)):
        for number, method in enumerate(methods):
            curves = [run.curve(key) for run in runs if run.method == method]
            window = settings.window if index == 0 else 1
            _draw(axes, np.array([trailing_mean(curve, window) for curve in curves]), window, number, method)
        axes.set(title=title, xlabel="rollout steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if index == 0:
            axes.axhline(settings.bar, color="grey", linewidth=0.8, linestyle=":")
            handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(methods), 4), frameon=False)
    figure.savefig(path, dpi=130)


def _draw(axes: Axes, values: np.ndarray, window: int, number: int, method: str) -> None:
    """A method's line and band; values [seeds, steps - window + 1]."""
    steps = np.arange(window, window + values.shape[1])
    mean = values.mean(axis=0)
    colour = "black" if number == 0 else _COLOURS[(number - 1) % len(_COLOURS)]
    style = "-" if number == 0 else _STYLES[number % len(_STYLES)]
    axes.plot(steps, mean, color=colour, linestyle=style, linewidth=2.4 if number == 0 else 1.6, label=method)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
