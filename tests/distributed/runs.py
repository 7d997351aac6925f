"""Training runs of `src/train.py` in processes of their own, as users start them, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, SMALL

SCRIPTED = (
    *(setting for setting in SMALL if not setting.startswith("trainer.")),
    "trainer.enable_progress_bar=false",
    "trainer.val_check_interval=1",
    "rollout._target_=tests.distributed.scripted_engine.scripted_engine",
    "reward._target_=tests.models.even_reward.EvenReward",
    "validate_at_start=false",
    "optimizer.learning_rate=1.0e-3",
    "optimizer.warmup_steps=0",
    "sampling.n=4",
    "sampling.max_new_tokens=24",
    "updates.max_row_tokens=150",
    "updates.probe_tokens=0",  # its log-probabilities are made up, so that old ones cannot be theirs either
    "callbacks.rollout_log=null",
)
"""The same rollouts on any number of ranks: what differs is arithmetic."""


def run(folder: Path, *overrides: str, expect_failure: bool = False) -> str:
    """Run training into `folder`; its output."""
    command = [sys.executable, str(ROOT / "src/train.py"), f"hydra.run.dir={folder}", *overrides]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "RANK"))}
    environment = inherited | {"OMP_NUM_THREADS": "1", "PROJECT_ROOT": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == expect_failure, output[-6000:]
    return output


def steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each rollout step, times left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "event"))}
        for line in lines
        if line["event"] == "rollout_step"
    ]
