"""BFCL V3 scores from the shares of passed cases a category. Pure arithmetic.

Follows the package's `eval_runner_helper.generate_leaderboard_csv`. An aggregate is there only where all its categories
are, never computed from a part of them (the package counts a missing category as 0). Weights are the numbers of cases
of the whole benchmark, so that a stratified subset estimates the same quantity.

`single_turn` is the "Overall Acc" of the paper's Table D.1, which no column of the package holds. The table gives it
away: (1150 non_live_ast + 1351 live) / 2501 agrees with all 28 rows to 0.008 percentage points, which is rounding.
The weights are the numbers of non-live and of live cases with a gold call, although its live score holds relevance and
irrelevance too. The paper's "Non-live Acc" is `non_live_ast`: all 28 values are multiples of 1/4800, as a mean over
these four is, and 10 of them are no multiples of 1/6000, as `non_live` would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.environments.bfcl.cases import CATEGORIES, GROUPS
from src.wings.evaluation.benchmark import UNPARSED, Record, count_by_category, mean_by_category

_MEANS: Mapping[str, tuple[str, ...]] = {
    "non_live_simple": ("simple", "java", "javascript"),
    "non_live_ast": ("non_live_simple", "multiple", "parallel", "parallel_multiple"),
    "non_live": ("non_live_simple", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    "multi_turn": GROUPS["multi_turn"],
    "relevance_detection": ("live_relevance",),
    "irrelevance_detection": ("irrelevance", "live_irrelevance"),
}
"""Plain means, each over categories and means above it."""

_WEIGHTED: Mapping[str, tuple[str, ...]] = {
    "live_ast": ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    "live": GROUPS["live"],
}
"""Means weighted by the numbers of cases."""

_OVERALL = ("live", "non_live", "multi_turn")
_NON_LIVE_CALLS = ("simple", "java", "javascript", "multiple", "parallel", "parallel_multiple")

COUNTED_ERRORS = ("context_exceeded", "time_limit", "memory_limit")
"""Reasons for a failure that are counted beside the scores."""


def aggregate(categories: Mapping[str, float]) -> dict[str, float]:
    """Every score that these categories determine.

    Args:
        categories: share of passed cases, in [0, 1], by category.

    Returns:
        The categories and: `non_live_simple`, `non_live_ast`, `non_live`, `live_ast`, `live`, `multi_turn`,
        `relevance_detection`, `irrelevance_detection`, `single_turn`, `overall`, as far as they are determined.

    >>> scores = aggregate({"simple": 0.9, "java": 0.6, "javascript": 0.6, "multi_turn_base": 0.5})
    >>> {name: round(score, 2) for name, score in scores.items() if name not in CATEGORIES}
    {'non_live_simple': 0.7}
    """
    scores = dict(categories)
    for name, parts in _MEANS.items():
        _add(scores, name, dict.fromkeys(parts, 1))
    for name, parts in _WEIGHTED.items():
        _add(scores, name, {part: CATEGORIES[part] for part in parts})
    _add(scores, "single_turn", {"non_live_ast": _cases(_NON_LIVE_CALLS), "live": _cases(_WEIGHTED["live_ast"])})
    _add(scores, "overall", dict.fromkeys(_OVERALL, 1))
    return scores


def score_records(records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
    """(scores, counts): every score that the records determine, and what is counted.

    That is cases a category; cases with an answer that was cut, or that could not be parsed (in all, and as
    `unparsed/<category>`); failures for the reasons of `COUNTED_ERRORS`.
    """
    samples = count_by_category(records)
    unparsed = count_by_category([record for record in records if record.details.get(UNPARSED)])
    counts = samples | {f"{UNPARSED}/{category}": unparsed.get(category, 0) for category in samples}
    counts[UNPARSED] = sum(unparsed.values())
    counts["truncated"] = sum(bool(record.details.get("truncated")) for record in records)
    for error in COUNTED_ERRORS:
        counts[error] = sum(record.details.get("error_type") == error for record in records)
    return aggregate(mean_by_category(records)), counts


def _add(scores: dict[str, float], name: str, weights: Mapping[str, int]) -> None:
    if weights.keys() <= scores.keys():
        scores[name] = sum(scores[part] * weight for part, weight in weights.items()) / sum(weights.values())


def _cases(categories: Sequence[str]) -> int:
    return sum(CATEGORIES[category] for category in categories)
