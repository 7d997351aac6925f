"""`summary.json`: what a run was and how it ended."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from src.runs.config_file import without_home

_PACKAGES = ("torch", "lightning", "transformers", "hydra-core", "torchmetrics", "vllm", "bfcl-eval")


def write_summary(folder: Path, **values: Any) -> None:
    """Write `summary.json` with the given values, the command, and the versions that it ran with; no home folder."""
    content: Mapping[str, Any] = {**values, "command": command_line(), "versions": versions()}
    (folder / "summary.json").write_text(without_home(json.dumps(content, indent=2)) + "\n", encoding="utf-8")


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
