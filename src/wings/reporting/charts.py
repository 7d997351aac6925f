"""Records → what charts show: learning curves (Figure F.1), regions (as in Figure D.1), updates. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from src.protocol.types import Region
from src.runs.metric_names import (
    CORRECTNESS,
    ENTROPY,
    EXACT_MATCH,
    NLL,
    RESPONSE_TOKENS,
    REWARD,
    UNSEEN_EXACT_MATCH,
    VAL_EXACT_MATCH,
)
from src.wings.comparing.comparison import ComparisonSettings, complete_curve, trailing_mean
from src.wings.comparing.run_folders import RunRecord, methods


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one run in one panel.

    Attributes:
        run: its name; empty for a row of the paper.
        group: what its colour stands for: the method, a region, a row of the paper, a kind of event.
        x: rollout steps, or indices of the panel's categories; ascending.
        y: a number for each x.
        start: the same before training, for bars; empty if it was not measured.
        notes: a text for each x, for events.
    """

    run: str
    group: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    start: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is measured.
        unit: of the numbers; may be empty.
        series: at least one.
        categories: what bars, spokes or rows stand for; empty for lines.
        last: where the axis of rollout steps ends, if that is after the last number.
        bar: a value to mark, for lines.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    categories: tuple[str, ...] = ()
    last: int = 0
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels that belong together: one figure.

    Attributes:
        key: its name in files and links.
        title: one line.
        caption: what to read from it, and how.
        panels: empty if no run has the numbers.
        kind: how panels are drawn.
        colours: what the colours of its groups stand for.
    """

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    kind: Literal["lines", "bars", "radar", "events"] = "lines"
    colours: Literal["method", "region"] = "method"


_LEARNING = (
    (REWARD, "Reward", "mean of the rollouts"),
    (EXACT_MATCH, "Exact match of rollouts", "share"),
    (VAL_EXACT_MATCH, "Exact match in validation", "share"),
    (ENTROPY, "Policy entropy", "nats a token"),
    (RESPONSE_TOKENS, "Response length", "tokens"),
    ("reward/format", "Format", "component"),
    ("reward/name", "Tool names", "component"),
    ("reward/parameter_names", "Parameter names", "component"),
    ("reward/parameter_values", "Parameter values", "component"),
    (CORRECTNESS, "Correctness", "component"),
    (UNSEEN_EXACT_MATCH, "Exact match on unseen tools", "share"),
    (NLL, "Negative log-likelihood", "nats a token"),
)
_FEWEST_TOKENS = 0.001
"""Share of a region in all tokens of a run, for it to be drawn: the means over fewer are noise."""
_UPDATES = (
    ("group/zero_variance", "Groups with equal rewards", "share"),
    ("group/reward_std", "Spread of rewards in a group", "std. dev."),
    ("response/truncated", "Cut completions", "share"),
    ("train/grad_norm", "Gradient norm", "before clipping"),
    ("train/approx_kl", "KL of an update", "nats a token"),
    ("train/clip_fraction_high", "Clipped above", "share of tokens"),
    ("train/sampler_gap", "Sampler against trainer", "nats"),
    ("time/rollout", "Time of rollouts", "seconds a step"),
    ("time/update", "Time of updates", "seconds a step"),
)


def learning_curves(runs: Sequence[RunRecord]) -> Chart:
    """Reward and its components, exact match, policy entropy and response length over rollout steps (Figure F.1)."""
    caption = (
        "As the paper's Figure F.1, with the components of the reward. A number at step s comes from the weights after "
        "s rollout steps. A schedule moves the scale of the reward, not of its components or of exact match."
    )
    return Chart("learning_curves", "Learning curves", caption, _panels(runs, _LEARNING))


def updates(runs: Sequence[RunRecord]) -> Chart:
    """Signs of how well the updates do: spread in groups, gradient, clipping, the sampler's agreement, time."""
    caption = (
        "Groups whose completions all earn the same teach nothing. The sampler's log-probabilities should be the "
        "trainer's."
    )
    return Chart("updates", "Updates", caption, _panels(runs, _UPDATES))


def region_entropy(runs: Sequence[RunRecord]) -> Chart:
    """Entropy of the policy at the tokens of each region over rollout steps (Figure D.1, through training)."""
    caption = "Mean entropy of the policy at a region's tokens, never scaled by weights: Figure D.1, followed in time."
    return _regions("region_entropy", "Entropy by region", caption, runs, {"entropy": ("Entropy", "nats a token")})


def region_weights(runs: Sequence[RunRecord]) -> Chart:
    """The curriculum's factors (Eq. 16-17) and the mean weight of tokens (Eq. 18) of each region over rollout steps."""
    caption = (
        "The factor is what the curriculum sets (Eq. 16-17); a token's weight is its region's factor over the mean "
        "factor of its response (Eq. 18)."
    )
    quantities = {"curriculum": ("Factor", "before normalisation"), "token_weight": ("Token weight", "mean")}
    return _regions("region_weights", "Region weights", caption, runs, quantities)


def gradient_share(runs: Sequence[RunRecord]) -> Chart:
    """Share of each region in the gradient's size, and in the sampled tokens, over rollout steps."""
    caption = (
        "Share in the sum of |A| w / T, the size of what tokens contribute to the loss (Eq. 19); beside it the share "
        "in the sampled tokens."
    )
    quantities = {"gradient_share": ("Gradient", "share"), "token_share": ("Tokens", "share")}
    return _regions("gradient_share", "Where the gradient goes", caption, runs, quantities)


def events(runs: Sequence[RunRecord]) -> Chart:
    """Alarms and faults of each run over rollout steps; a row a run, in those that have any."""
    names = tuple(run.name for run in runs if run.events)
    series = tuple(
        Series(
            run.name,
            kind,
            tuple(event.step for event in found),
            (float(names.index(run.name)),) * len(found),
            notes=tuple(event.text for event in found),
        )
        for run in runs
        for kind in dict.fromkeys(event.kind for event in run.events)
        if (found := sorted((event for event in run.events if event.kind == kind), key=lambda event: event.step))
    )
    last = max((run.steps_done for run in runs if run.events), default=0)
    panels = (Panel("Events", "rollout step", series, names, last),) if series else ()
    return Chart("events", "Alarms and faults", "An alarm is told the first time that it holds.", panels, "events")


def _panels(runs: Sequence[RunRecord], metrics: Sequence[tuple[str, str, str]]) -> tuple[Panel, ...]:
    found = ((title, unit, _series(runs, key)) for key, title, unit in metrics)
    return tuple(Panel(title, unit, series) for title, unit, series in found if series)


def _series(runs: Sequence[RunRecord], key: str, group: str | None = None) -> tuple[Series, ...]:
    """One for each run that has the metric; its group is the method unless given."""
    curves = ((run, *run.curve(key)) for run in runs)
    return tuple(Series(run.name, group or run.method, x, y) for run, x, y in curves if x)


def _regions(
    key: str, title: str, caption: str, runs: Sequence[RunRecord], quantities: dict[str, tuple[str, str]]
) -> Chart:
    """One panel a quantity with regions as groups for one method; for several, one a quantity and region."""
    labels = [region.label for region in Region if _appears(runs, region)]
    panels = []
    alone = len(methods(runs)) == 1
    for prefix, (name, unit) in quantities.items():
        by_region = {label: _series(runs, f"{prefix}/{label}", label if alone else None) for label in labels}
        if alone and (together := tuple(series for found in by_region.values() for series in found)):
            panels.append(Panel(name, unit, together))
        elif not alone:
            panels += [
                Panel(f"{name}: {label.replace('_', ' ')}", unit, found) for label, found in by_region.items() if found
            ]
    return Chart(key, title, caption, tuple(panels), colours="region" if alone else "method")


def _appears(runs: Sequence[RunRecord], region: Region) -> bool:
    """Whether enough tokens of some run are in it, or nobody counted."""
    shares = [run.curve(f"token_share/{region.label}")[1] for run in runs]
    return not any(shares) or any(sum(found) > _FEWEST_TOKENS * len(found) for found in shares)


_CURVES = (
    (ENTROPY, "policy entropy", "nats a token"),
    (RESPONSE_TOKENS, "response length", "tokens"),
)


def comparison_curves(runs: Sequence[RunRecord], settings: ComparisonSettings) -> Chart:
    """Training metric (trailing mean), entropy and response length after each rollout step, one line a method.

    Raises:
        ComparisonError: a run has a step without one of the metrics.
    """
    panels = []
    for key, title, unit in ((settings.training_metric, "", ""), *_CURVES):
        window = 1 if title else settings.window
        series = tuple(
            Series(run.name, run.method, tuple(range(window, len(run.steps) + 1)), tuple(values))
            for run in runs
            for values in [trailing_mean(complete_curve(run, key), window)]
        )
        title, bar = (title, None) if title else (f"{key}, trailing mean of {window}", settings.bar)
        panels.append(Panel(title, unit, series, bar=bar))
    return Chart("curves", "Learning curves", "", tuple(panels))
