"""Kills a training run again and again, resumes it, and compares it with one that nobody touched.

    python -m tests.faults.kill --kills 20
    python -m tests.faults.kill --kills 5 --ranks 2        # two gloo processes, sharded checkpoints
    python -m tests.faults.kill --kills 10 --episodes      # whole episodes, with credit by turn
    python -m tests.faults.kill --mcp --steps 20           # against an MCP server, which is killed too

Half of the kills come from outside at a random moment, the start of the process included; with two ranks some hit one
of them only. The others are SIGKILLs that the process sends itself at the worst points of saving (`dying`). Each start
is the same command with `ckpt_path=auto`. A run that ends before all kills are done is compared, and another follows.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import psutil

from tests.faults.dying import POINTS
from tests.faults.states import differences, steps_done

ROOT = Path(__file__).parents[2]
log = logging.getLogger("kill")
T = TypeVar("T")

SETTINGS = (
    "ckpt_path=auto",
    "algorithm=rest_auto",  # with Eq. 9's measurement of the start
    "optimizer.schedule=cosine",
    "data.prompts_per_step=4",
    "updates.prompts_per_minibatch=2",
    "data.limit_val=4",
    "sampling.n=4",
    "sampling.max_new_tokens=40",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "callbacks.progress_bar=null",
    "callbacks.rollout_log.every_n_steps=1",
    "callbacks.rollout_log.groups=2",
    "callbacks.checkpoint.every_n_rollout_steps=1",
    "benchmark=[]",
    "preflight.action=off",
)


STEPS = ("data.train.num_train=13",)
"""Single steps of a corpus, three rollout steps an epoch."""

EPISODES = (
    *("experiment=tiny_episodes", "algorithm.credit=turn", "episodes.max_turns=4"),
    *("environment.num_train=13", "environment.num_val=4"),
)


@dataclass
class Victim:
    """A run in a folder of its own.

    Attributes:
        folder: of the run.
        steps: rollout steps of the whole run.
        ranks: processes.
        overrides: of its config, beside the usual ones.
        kills: by kind.
        starts: of the process.
    """

    folder: Path
    steps: int
    ranks: int
    overrides: tuple[str, ...] = STEPS
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def start(self, fault: str = "") -> subprocess.Popen[bytes]:
        """Start or resume it, in a process group of its own."""
        self.starts += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = ["trainer=fsdp_cpu", f"trainer.devices={self.ranks}"] if self.ranks > 1 else ["trainer=cpu"]
        command = [sys.executable, str(ROOT / "tests/faults/dying.py"), f"hydra.run.dir={self.folder}", *trainer]
        command += [*SETTINGS, f"updates.rollout_steps={self.steps}", *self.overrides]
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "RANK"))}
        environment = outer | {"OMP_NUM_THREADS": "1", "PROJECT_ROOT": str(ROOT), "FAULT": fault}
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def end(self) -> int:
        """Let it run to its end; its status."""
        return self.start().wait()

    def kill_once(self, kind: str, dice: random.Random, step_seconds: float) -> bool:
        """Start it and kill it; False if it ended before."""
        done = steps_done(self.folder)
        process = self.start("" if kind in OUTSIDE else f"{kind}:{done + dice.randint(1, 2)}")
        try:
            if kind in OUTSIDE:
                self._wait(process, done + dice.choice((0, 1, 1, 2)), done, dice, step_seconds)
                _kill(process, one_rank=kind == "one rank", dice=dice)
            status = process.wait(timeout=600)
        finally:
            _kill_group(process)
        if status == 0:
            return False
        if kind not in ("one rank",) and status != -signal.SIGKILL:
            raise RuntimeError(f"it failed with status {status}, see '{self.folder / 'output.txt'}'")
        self.kills[kind] += 1
        return True

    def _wait(
        self, process: subprocess.Popen[bytes], target: int, done: int, dice: random.Random, step_seconds: float
    ) -> None:
        """Until a moment after rollout step `target`; if that was done before, one of the start."""
        if target == done:
            time.sleep(dice.uniform(0, 20))
            return
        while steps_done(self.folder) < target and process.poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1.5 * step_seconds))


OUTSIDE = ("any moment", "one rank")


def _kill(process: subprocess.Popen[bytes], *, one_rank: bool, dice: random.Random) -> None:
    """All processes of the run, or one of them, which the others must notice or hang."""
    if process.poll() is not None:
        return
    if not one_rank:
        _kill_group(process)
        return
    workers = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
    os.kill(dice.choice(workers), signal.SIGKILL)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def compare(
    folder: Path, kills: int, *, ranks: int = 1, steps: int = 12, seed: int = 0, overrides: tuple[str, ...] = STEPS
) -> tuple[str, list[str]]:
    """Do it all; what was done in words, and what is not as it must be."""
    dice = random.Random(seed)
    whole = Victim(folder / "whole", steps, ranks, overrides)
    started = time.monotonic()
    if whole.end() != 0 or steps_done(whole.folder) != steps:
        raise RuntimeError(f"the run that nobody touched failed, see '{whole.folder / 'output.txt'}'")
    log.info("uninterrupted: %d rollout steps, %.0f s", steps, time.monotonic() - started)
    step_seconds = _step_seconds(whole.folder)
    outside = OUTSIDE if ranks > 1 else OUTSIDE[:1]
    order = [kind for pair in zip(outside * kills, POINTS * kills, strict=False) for kind in pair][:kills]
    total: Counter[str] = Counter()
    problems: list[str] = []
    runs = starts = 0
    while total.total() < kills:
        victim = Victim(folder / f"killed_{runs}", steps, ranks, overrides)
        runs += 1
        ended = False
        while not ended and (total + victim.kills).total() < kills:
            kind = order[(total + victim.kills).total()]
            ended = not victim.kill_once(kind, dice, step_seconds)
            log.info(
                "kill %d: %s, %d rollout steps done",
                (total + victim.kills).total(),
                "none, it ended" if ended else kind,
                steps_done(victim.folder),
            )
        if not ended and (status := victim.end()) != 0:
            raise RuntimeError(f"it failed with status {status}, see '{victim.folder / 'output.txt'}'")
        found = [f"{victim.folder.name}: {problem}" for problem in differences(whole.folder, victim.folder)]
        for line in found or [f"{victim.folder.name}: as the uninterrupted run"]:
            log.info("%s", line)
        problems += found
        total += victim.kills
        starts += victim.starts
    kinds = ", ".join(f"{count} {kind}" for kind, count in total.items())
    return f"{total.total()} kills ({kinds}) of {runs} run(s) on {ranks} rank(s), {starts - runs} resumes", problems


def mcp_run(folder: Path, steps: int) -> list[str]:
    """Train against MCP servers; kill one of them, then the trainer; resume, and resume again with one more kill.

    Returns:
        What is not as it must be: servers that outlive the trainer, or differences between the two resumed runs.
    """
    victim = Victim(folder / "first", steps, 1, _mcp_settings(folder))
    process = victim.start()
    try:
        _until(process, lambda: steps_done(victim.folder) >= 1)
        server = _until(process, lambda: _servers(process.pid))[0]
        server.kill()
        log.info("killed a server after %d rollout steps", steps_done(victim.folder))
        _until(process, lambda: steps_done(victim.folder) >= 2)
        servers = _until(process, lambda: _servers(process.pid))
        process.kill()
        process.wait()
        log.info("killed the trainer after %d rollout steps", steps_done(victim.folder))
    finally:
        _kill_group(process)
    problems = [f"server {left.pid} is left" for left in psutil.wait_procs(servers, timeout=10)[1]]
    again = replace(victim, folder=folder / "again")
    shutil.copytree(victim.folder, again.folder)
    done = steps_done(again.folder)
    process = again.start()
    try:
        _until(process, lambda: steps_done(again.folder) > done)
        process.kill()
        process.wait()
    finally:
        _kill_group(process)
    for run in (victim, again):
        if run.end() != 0 or steps_done(run.folder) != steps:
            raise RuntimeError(f"it failed, see '{run.folder / 'output.txt'}'")
    return problems + differences(victim.folder, again.folder)


def _mcp_settings(folder: Path) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        rows = [{"prompt": f"Add a note: {split} {word}."} for word in ("tea", "rain", "rice", "salt")]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "reward.py").write_text(
        "def calls(row, messages):\n    return sum(len(one.get('tool_calls') or ()) for one in messages)\n"
    )
    return (
        *("experiment=tiny_native", "data=episodes", "environment=mcp", "data.max_prompt_tokens=600"),
        f"environment.command=[python,{ROOT}/tests/environments/sqlite_server.py]",
        f"environment.rows={{train: {folder}/train.jsonl, val: {folder}/val.jsonl}}",
        *(f"environment.reward={folder}/reward.py:calls", "episodes.max_turns=3", "data.limit_val=1"),
        *("data.prompts_per_step=2", "updates.prompts_per_minibatch=2", "sampling.n=2"),
    )


def _servers(trainer: int) -> list[psutil.Process]:
    """The MCP servers that a trainer has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(trainer).children(recursive=True)
        return [one for one in children if "sqlite_server.py" in " ".join(one.cmdline())]
    return []


def _until(process: subprocess.Popen[bytes], found: Callable[[], T]) -> T:
    """What is found, once it is, in a run that goes on."""
    while process.poll() is None:
        if value := found():
            return value
        time.sleep(0.02)
    raise RuntimeError("the run ended before it was killed")


def _step_seconds(folder: Path) -> float:
    """Mean time between two checkpoints' lines of a run."""
    file, first = folder / "metrics.jsonl", folder / ".hydra/config.yaml"
    return max(0.2, (file.stat().st_mtime - first.stat().st_mtime) / max(1, steps_done(folder)) / 2)


def main() -> int:
    """Command line; status 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="rollout steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--episodes", action="store_true", help="of a run that plays episodes")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs go; default: a temporary folder")
    parser.add_argument("--mcp", action="store_true", help="a run against MCP servers, with three kills")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    if options.mcp:
        problems = mcp_run(folder, options.steps)
        log.info("%s", problems or "nothing is left behind; bit for bit the run that was resumed once")
        return 1 if problems else 0
    overrides = EPISODES if options.episodes else STEPS
    told, problems = compare(
        folder, options.kills, ranks=options.ranks, steps=options.steps, seed=options.seed, overrides=overrides
    )
    log.info("%s: %s", told, f"{len(problems)} differences" if problems else "bit for bit the uninterrupted run")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
