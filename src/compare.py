"""Compare: find runs → check budgets → statistics → tables and curves. `python src/compare.py 'runs=[FOLDER]'`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from hydra.utils import instantiate  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from src.runs.line_file import write_whole  # noqa: E402
from src.runs.summary import command_line, versions  # noqa: E402
from src.wings.comparing.budgets import check_budgets, method_settings, shared_settings, start_gap  # noqa: E402
from src.wings.comparing.comparison import ComparisonSettings, MethodRow, compare  # noqa: E402
from src.wings.comparing.run_folders import ComparisonError, find_runs, given_folders, read_finished_run  # noqa: E402
from src.wings.comparing.tables import render_comparison, results_table  # noqa: E402
from src.wings.reporting.charts import comparison_curves  # noqa: E402
from src.wings.reporting.figures import draw  # noqa: E402

log = logging.getLogger(__name__)


def compare_runs(config: DictConfig) -> list[MethodRow]:
    """Write `comparison.md`, `comparison.json` and `curves.png`, and return the rows.

    Raises:
        ComparisonError: no folder was given, or a run is unfinished, cannot be read or has another budget.
    """
    given = None if OmegaConf.is_missing(config, "runs") else config.runs
    folders = given_folders(given, "E.g. 'runs=[logs/compare/<time>]'")
    settings: ComparisonSettings = instantiate(config.comparison)
    finished, unfinished = find_runs(folders)
    if unfinished and not config.allow_unfinished:
        raise ComparisonError(
            f"unfinished, without summary.json: {_listed(unfinished)}. Wait for them, run them again, or leave them "
            "out with allow_unfinished=true."
        )
    if not finished:
        raise ComparisonError(f"runs: expected a finished run, found none in {_listed(folders)}.")
    for folder in unfinished:
        log.warning("Left out, unfinished: '%s'.", folder)
    runs = [read_finished_run(folder) for folder in finished]
    check_budgets(runs)
    rows = compare(runs, settings)
    names = [folder.name for folder in unfinished]

    output = folders[0] if config.output is None else Path(config.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "settings": asdict(settings),
        "methods": [asdict(row) for row in rows],
        "runs": [{"method": run.method, "seed": run.seed, "folder": run.name} for run in runs],
        "unfinished": names,
        "start_gap": start_gap(runs),
        "shared": shared_settings(runs),
        "differing": method_settings(runs),
        "command": command_line(),
        "versions": versions(),
    }
    write_whole(output / "comparison.md", render_comparison(rows, runs, settings, names))
    write_whole(output / "comparison.json", json.dumps(content, indent=2, default=str) + "\n")
    draw(comparison_curves(runs, settings), [row.method for row in rows]).savefig(output / "curves.png", dpi=130)
    log.info("%d runs of %d methods\n\n%s\n", len(runs), len(rows), results_table(rows, settings))
    log.info("Tables and curves: %s", output)
    return rows


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare.yaml")
def main(config: DictConfig) -> None:
    """Command line."""
    compare_runs(config)


if __name__ == "__main__":
    main()
