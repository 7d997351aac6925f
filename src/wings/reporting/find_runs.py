"""Run folders → records. Reads files, writes none; `comparing.run_folders` finds the runs and reads their lines."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.wings.comparing.comparison import ComparisonError
from src.wings.comparing.run_folders import find_runs, flat_settings, read_events
from src.wings.reporting.run_record import RunRecord

log = logging.getLogger(__name__)


class ReportError(ComparisonError):
    """Runs that cannot be shown: names the file, what was expected and what was found."""


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """All runs in these folders, run folders themselves or folders of them (sweeps, comparisons), with unique names.

    They are in the order of the folders, and by name in each. Unfinished runs are among them, unless they have no
    config or numbers yet.

    Raises:
        ComparisonError: a folder is not there or holds no run, or a run's files cannot be read.
    """
    found = dict.fromkeys(run for folder in folders for run in sorted(itertools.chain(*find_runs([folder]))))
    runs = []
    for folder in found:
        missing = [name for name in ("config.yaml", "metrics.jsonl") if not (folder / name).is_file()]
        if missing:
            log.warning("Left out, without %s: '%s'.", " and ".join(missing), folder)
        else:
            runs.append(read_run(folder))
    if not runs:
        raise ReportError(
            "runs: expected a run with config.yaml and metrics.jsonl (callbacks.metrics_file), found none in "
            f"{', '.join(map(repr, map(str, folders)))}."
        )
    return _named(runs)


def latest_run(folder: Path) -> Path:
    """The run that finished last; if none is finished, the one that started last.

    Args:
        folder: of runs, e.g. `logs/train/runs`.

    Raises:
        ComparisonError: there is no run.
    """
    if not folder.is_dir():
        raise ReportError(f"runs: expected runs in '{folder}', found no such folder. Train one: make train")
    finished, unfinished = find_runs([folder])
    if finished:
        return max(finished, key=lambda run: (run / "summary.json").stat().st_mtime)
    newest = max(unfinished, key=lambda run: run.stat().st_mtime)
    log.warning("No run in '%s' is finished; this is the latest: '%s'.", folder, newest.name)
    return newest


def read_run(folder: Path) -> RunRecord:
    """A run, finished or not, stopped and resumed or not, of any method; named after its folder.

    Raises:
        ComparisonError: a file cannot be read, or a line of `metrics.jsonl` is no event.
    """
    config = _read_config(folder / "config.yaml")
    method, seed = OmegaConf.select(config, "algorithm.name"), OmegaConf.select(config, "seed")
    summary = _read_summary(folder / "summary.json")
    return RunRecord.from_events(
        folder.name,
        method if isinstance(method, str) else "unnamed",
        seed if isinstance(seed, int) else None,
        read_events(folder / "metrics.jsonl", growing=summary is None),
        settings=flat_settings(config),
        summary=summary,
        folder=folder,
    )


def _read_config(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ReportError(f"{path}: expected a run's config as YAML, found: {error}") from error
    if not isinstance(config, DictConfig):
        raise ReportError(f"{path}: expected a run's config, found a {type(config).__name__}.")
    return config


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: expected JSON, found: {error}. Remove it to show the run as unfinished.") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: expected a JSON object, found a {type(content).__name__}.")
    return content


def _named(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs with the shortest kind of name that tells them apart: method and seed, folder, or more of its path."""

    def path_parts(count: int) -> Callable[[RunRecord], str]:
        return lambda run: "/".join(run.folder.parts[-count:]) if run.folder else run.name

    kinds: list[Callable[[RunRecord], str]] = [lambda run: f"{run.method}-{run.seed}", *map(path_parts, range(1, 9))]
    for kind in kinds:
        names = [kind(run) for run in runs]
        if max(Counter(names).values()) == 1:
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return [replace(run, name=f"{run.name} ({number})") for number, run in enumerate(runs, start=1)]
