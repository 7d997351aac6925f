"""Many rollout steps of the tiny run with faults at random: `python -m tests.faults.soak --steps 500`.

The run ends, every fault is an event in `metrics.jsonl`, and resident memory at the end is within 5 % of that at step
50. Prints a report as JSON; the status is 1 if one of the three does not hold. Minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from src.rollout.splitting import SplittingEngine
from src.train import train
from src.training import run as program
from tests.conftest import SMALL, train_config
from tests.faults.injected import EVENTS, FaultyEngine, Memory, NaNGradients, Plan, SleepyLogger

SETTLED = 50  # rollout steps
GROWTH = 0.05
SLOW_S, SLEEP_S = 0.5, 0.6


def soak(folder: Path, steps: int, rate: float, seed: int, *overrides: str) -> dict[str, Any]:
    """Run it in `folder`; what happened."""
    plan, memory = Plan(steps, rate, seed), Memory()
    callbacks = program.instantiate_callbacks
    config = train_config(
        folder,
        *SMALL,
        f"updates.rollout_steps={steps}",
        f"trainer.val_check_interval={steps}",
        "updates.prompts_per_minibatch=1",
        "data.prompts_per_step=2",
        "data.train.num_train=200",
        "optimizer.warmup_steps=0",
        f"callbacks.slow_logger.max_seconds={SLOW_S}",
        "callbacks.rollout_log=null",
        "callbacks.checkpoint.every_n_rollout_steps=100",
        f"seed={seed}",
        *overrides,
    )
    started = time.monotonic()
    with (
        mock.patch.object(program, "instantiate_callbacks", lambda c: [NaNGradients(plan), *callbacks(c), memory]),
        mock.patch.object(program, "instantiate_loggers", lambda c: [SleepyLogger(plan, SLEEP_S)]),
        mock.patch.object(program, "SplittingEngine", lambda engine: SplittingEngine(FaultyEngine(engine, plan))),
    ):
        train(config)
    seconds = time.monotonic() - started
    gc.collect()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = Counter(line["event"] for line in lines)
    injected = Counter(kind for kind, _ in plan.struck)
    report: dict[str, Any] = {
        "rollout_steps": found["rollout_step"],
        "seconds": round(seconds, 1),
        "injected": dict(injected),
        "recorded": {kind: found[event] for kind, event in EVENTS.items()},
        "all_recorded": not plan.due and all(found[EVENTS[kind]] >= count for kind, count in injected.items()),
    }
    if steps > SETTLED:
        settled, end = memory.mib[SETTLED - 1], memory.mib[-1]
        report |= {"mib_settled": round(settled, 1), "mib_end": round(end, 1), "growth": round(end / settled - 1, 4)}
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.05, help="chance of each fault at each rollout step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the run; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = soak(folder, arguments.steps, arguments.rate, arguments.seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    whole = report["rollout_steps"] == arguments.steps
    return int(not (whole and report["all_recorded"] and abs(report.get("growth", 0.0)) <= GROWTH))


if __name__ == "__main__":
    sys.exit(main())
