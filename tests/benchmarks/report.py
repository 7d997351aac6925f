"""The tables of docs/performance.md from the numbers of a run: `python -m tests.benchmarks.report bench.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import Result

TITLES = {
    "step": "Whole step",
    "update": "Update",
    "rollout": "Rollout",
    "efficiency": "Share of the machine's peak",
    "head": "Head",
    "memory": "Memory",
    "scoring": "Regions, weights and reward",
    "precision": "Half precision and shards",
    "growth": "Growth",
}


def load(file: Path) -> tuple[dict[str, Any], list[Result]]:
    """What a run was made on, and its results."""
    content = json.loads(file.read_text())
    return content["environment"], [Result(**_fields(item)) for item in content["results"]]


def dump(environment: dict[str, Any], results: list[Result]) -> str:
    """The JSON of a run."""
    items = [{**vars(result), "met": result.met} for result in results]
    return json.dumps({"environment": environment, "results": items}, indent=1) + "\n"


def markdown(environment: dict[str, Any], results: list[Result]) -> str:
    """A table a section."""
    lines = [", ".join(f"{key} {value}" for key, value in environment.items())]
    for section in sorted({r.section for r in results}, key=lambda name: [*TITLES, name].index(name)):
        rows = [r for r in results if r.section == section]
        lines += ["", f"### {TITLES.get(section, section)}", "", *result_table(rows)]
    return "\n".join(lines) + "\n"


def result_table(rows: list[Result]) -> list[str]:
    """Lines of a Markdown table, a row a number."""
    lines = ["| setting | case | what | measured | spread | bar | details |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        spread = "" if row.low is None or row.high is None else f"{_short(row.low)} to {_short(row.high)}"
        details = ", ".join(f"{key} {_short(value)}" for key, value in row.details.items())
        cells = (row.setting, row.case, row.quantity, f"**{_short(row.value)}**{row.unit}", spread, _bar(row), details)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _bar(row: Result) -> str:
    if row.bar is None:
        return ""
    return f"{'≤' if row.at_most else '≥'} {_short(row.bar)}: {'met' if row.met else '**not met**'}"


def _short(value: float) -> str:
    """Three digits.

    >>> _short(0.123456), _short(12.3456), _short(1234.5)
    ('0.123', '12.3', '1,234')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _fields(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "met"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="written by `make bench ARGS='--json FILE'`")
    print(markdown(*load(parser.parse_args().file)), end="")


if __name__ == "__main__":
    main()
