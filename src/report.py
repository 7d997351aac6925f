"""Report: find runs → read → charts and tables → one HTML page, PNG and SVG. `python src/report.py 'runs=[FOLDER]'`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig  # noqa: E402

from src.config.command_line import entry_point  # noqa: E402
from src.runs.line_file import write_whole  # noqa: E402
from src.wings.comparing.run_folders import (  # noqa: E402
    ComparisonError,
    RunRecord,
    given_folders,
    latest_run,
    methods,
    read_runs,
)
from src.wings.reporting import page  # noqa: E402
from src.wings.reporting.figures import CHARTS, FORMATS, save_figures  # noqa: E402
from src.wings.reporting.inspector.section import InspectedRun, section  # noqa: E402
from src.wings.reporting.overview import title  # noqa: E402

log = logging.getLogger(__name__)


def report(config: DictConfig) -> Path:
    """Write `report.html` and `figures/`, and return the page's file.

    Raises:
        ComparisonError: there is no run, one cannot be read, or a format is not known.
    """
    if config.runs is None:
        folders = [latest_run(Path(config.paths.log_dir) / "train" / "runs")]
    else:
        folders = given_folders(config.runs, "Leave it out to see the latest run.")
    unknown = sorted(set(config.formats) - set(FORMATS))
    if unknown:
        raise ComparisonError(f"formats: expected some of {list(FORMATS)}, found {unknown}.")
    runs = read_runs(folders)
    charts = {key: make(runs) for key, make in CHARTS.items()}
    output = _output(config, folders, runs)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "report.html"
    # drawing takes as long as the rest, so a process of its own does it
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        written = pool.submit(
            save_figures, output / "figures", charts, methods(runs), list(config.formats), dpi=config.dpi
        )
        sections = [section([InspectedRun(r.name, r.folder, r.method) for r in runs if r.folder is not None])]
        how = {"baseline": config.baseline, "reference_rows": config.reference_rows}
        write_whole(file, page.render(runs, charts, sections, **how))
        written.result()
    log.info("%s: %s", title(runs), file)
    return file


def _output(config: DictConfig, folders: Sequence[Path], runs: Sequence[RunRecord]) -> Path:
    if config.output is not None:
        return Path(config.output).expanduser()
    return (runs[0].folder or folders[0]) / "report" if len(runs) == 1 else folders[0] / "report"


@hydra.main(version_base="1.3", config_path="../configs", config_name="report.yaml")
def main(config: DictConfig) -> None:
    """Command line."""
    report(config)


if __name__ == "__main__":
    with entry_point("report.yaml"):
        main()
