"""Trainings as a user starts them: `src/train.py` in a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.serving import ROOT
from tests.gpu.settings import Proof

PLAIN = (
    "benchmark=[]",
    "logger=csv",
    "preflight.action=off",
    "callbacks.progress_bar=null",
    "callbacks.live_figures=null",
    "callbacks.rollout_log=null",
    "trainer.enable_progress_bar=false",
)
"""Overrides of runs of which nothing but metrics and checkpoints is wanted."""
_TAIL = 2000


class RunError(RuntimeError):
    """A training that ended otherwise than it should; the message has the end of its output."""


def train(proof: Proof, name: str, *overrides: str) -> Path:
    """Train, on the proof's device, into the proof's folder.

    Args:
        proof: says where.
        name: of the run folder.
        overrides: of the default config.

    Returns:
        The run folder.

    Raises:
        RunError: the training failed.
    """
    folder = proof.folder / name
    accelerator = "gpu" if proof.cuda else "cpu"
    where = (f"trainer.accelerator={accelerator}", "trainer.devices=1", f"hydra.run.dir={folder}")
    command = [sys.executable, "src/train.py", *overrides, *where, f"paths.cache_dir={proof.folder / 'cache'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-_TAIL:]}")
    return folder


def summary(folder: Path) -> dict[str, Any]:
    """Of a run folder."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def curve(folder: Path, metric: str) -> dict[int, float]:
    """A metric by rollout step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {record["rollout_step"]: record[metric] for record in records if metric in record}
