"""The paper's rows of Tables 1, 2, D.1, D.2 and D.3 (arXiv 2509.21826), and how their overall columns come about."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ROUNDING = 0.0101
"""Percentage points that rounding to two digits can put between a total and its parts."""

TOTALS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "1": (
        "multi_turn",
        {f"multi_turn_{part}": 1 for part in ("base", "miss_func", "miss_param", "long_context")},
    ),
    "2": ("overall", {"level_1": 399, "level_2": 67, "level_3": 131}),
    "D.1": ("single_turn", {"non_live_ast": 1150, "live": 1351}),
    "D.2": ("overall", {"level_1": 399, "level_2": 67, "level_3": 131}),
}
"""For each table the score that is a weighted mean of others, and the weights.

The paper does not say how D.1 weighs; all 28 rows follow these numbers of cases with calls. Its "Non-live" is the
leaderboard's Non-Live AST column, which D.3 calls by its full name (see `src.wings.evaluation.bfcl.scores`).
"""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One model in one table of the paper.

    Attributes:
        table: its number.
        model: as the paper writes it.
        scores: in percent, under the names of our scores.
    """

    table: str
    model: str
    scores: Mapping[str, float]

    @property
    def adds_up(self) -> bool:
        """Whether the row's total is the mean of its parts, up to rounding.

        >>> PaperRow("2", "A", {"overall": 50.0, "level_1": 70.0, "level_2": 60.0, "level_3": 50.0}).adds_up
        False
        """
        if self.table not in TOTALS:
            return True
        total, weights = TOTALS[self.table]
        expected = sum(self.scores[part] * weight for part, weight in weights.items()) / sum(weights.values())
        return abs(self.scores[total] - expected) < _ROUNDING


def paper_rows(tables: Collection[str], models: str = "all") -> list[PaperRow]:
    """Rows of some tables, in the paper's order.

    Args:
        tables: their numbers.
        models: `all`, `none`, or a part of the model's name, in any case.
    """
    if models == "none":
        return []
    part = "" if models == "all" else models.casefold()
    return [row for row in _all_rows() if row.table in tables and part in row.model.casefold()]


@cache
def _all_rows() -> tuple[PaperRow, ...]:
    content = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(
        PaperRow(table, model, dict(zip(part["scores"], values, strict=True)))
        for table, part in content.items()
        for model, values in part["rows"].items()
    )
