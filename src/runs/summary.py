"""`summary.json`: what a run was and how it ended."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from src.runs.config_file import without_home

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "lightning", "transformers", "hydra-core", "torchmetrics", "vllm", "bfcl-eval")


def write_summary(folder: Path, **values: Any) -> None:
    """Write `summary.json` with the given values, the command, and the versions that it ran with; no home folder."""
    content: Mapping[str, Any] = {**values, "command": command_line(), "versions": versions()}
    (folder / "summary.json").write_text(without_home(json.dumps(content, indent=2)) + "\n", encoding="utf-8")


def best_checkpoint(callbacks: Iterable[object]) -> dict[str, object] | None:
    """What the best checkpoint of a fit was chosen by, its score and its file; None where none was chosen."""
    from lightning.pytorch.callbacks import ModelCheckpoint  # what only reads runs does without

    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
            return {
                "monitor": callback.monitor,
                "score": float(callback.best_model_score),
                "path": Path(callback.best_model_path).name,
            }
    return None


def log_scores(start: Mapping[str, float], final: Mapping[str, float], moved: bool) -> None:
    """Log the main scores of a run's end, beside those of its start.

    Args:
        start: metric → value.
        final: the same, at the end.
        moved: a schedule moved the reward's range in between, so that rewards cannot be compared.
    """
    for key in sorted(final):
        if key.endswith(("/exact_match", "/reward", "/format", "/overall")):
            before = f"{start[key]:.3f} → " if key in start else ""
            warning = " (a schedule moved the reward's range: compare exact_match)"
            log.info("%-28s %s%.3f%s", key, before, final[key], warning if moved and key.endswith("/reward") else "")


def command_line(*more: str) -> str:
    """The command that runs, with further arguments and without the home folder; for a submitit job, its own."""
    script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if script == "_submit.py":
        job = HydraConfig.get()
        script, arguments = f"{job.job.name}.py", list(job.overrides.task)
    return without_home(shlex.join(["python", f"src/{script}", *arguments, *more]))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
