"""`src/train.py` with a weak spot: `FAULT=POINT:STEP python tests/faults/dying.py OVERRIDES…`.

From the end of rollout step STEP on, the process sends itself SIGKILL when it first comes to POINT:

- `writing`: a checkpoint is half written;
- `sealed`: it is whole under its temporary name;
- `moved`: the one before it, if any, has left its place, and it is not there yet;
- `published`: it has its name, what comes after saving has not happened;
- `line`: half a line of `metrics.jsonl` or `rollouts.jsonl` is written.

Without FAULT it is `src/train.py`.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import src.callbacks.checkpoint as checkpoint  # noqa: E402
from src.callbacks.checkpoint import RolloutCheckpoint  # noqa: E402
from src.runs.line_file import LineFile  # noqa: E402

POINTS = ("writing", "sealed", "moved", "published", "line")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_in_half(partial: Path) -> None:
    """What a kill in the middle of writing leaves of a file, or of a folder of shards."""
    files = [partial] if partial.is_file() else sorted(path for path in partial.iterdir())
    for path in files[len(files) // 2 :]:
        os.truncate(path, path.stat().st_size // 2)


def arm(point: str, step: int) -> None:
    """Patch the program so that it dies there."""
    reached = {"step": 0}
    seal, publish, replace, append = checkpoint.seal, checkpoint.publish, os.replace, LineFile.append

    def due(where: str) -> bool:
        return point == where and reached["step"] >= step

    def noting(hook: Any) -> Any:
        def noted(self: RolloutCheckpoint, trainer: Any, module: Any, *args: Any) -> None:
            reached["step"] = module.rollout_step
            hook(self, trainer, module, *args)

        return noted

    def fragile_seal(partial: Path, sums: Any) -> None:
        if due("writing"):
            cut_in_half(partial)
            die()
        seal(partial, sums)
        if due("sealed"):
            die()

    def fragile_publish(*args: Any) -> None:
        publish(*args)
        if due("published"):
            die()

    def fragile_replace(source: Any, target: Any) -> None:
        if due("moved") and str(source).endswith(".partial"):
            die()
        replace(source, target)

    def fragile_append(self: LineFile, records: Any) -> None:
        records = list(records)
        if point == "line" and any(record.get("rollout_step", 0) >= step - 1 for record in records):
            append(self, records)
            os.truncate(self.path, self.path.stat().st_size - 40)
            die()
        append(self, records)

    for hook in ("on_train_batch_end", "on_validation_end"):
        setattr(RolloutCheckpoint, hook, noting(getattr(RolloutCheckpoint, hook)))
    checkpoint.seal, checkpoint.publish, os.replace, LineFile.append = (  # type: ignore[method-assign]
        fragile_seal,
        fragile_publish,
        fragile_replace,
        fragile_append,
    )


if __name__ == "__main__":
    if fault := os.environ.get("FAULT"):
        arm(fault.split(":")[0], int(fault.split(":")[1]))
    runpy.run_path(str(ROOT / "src/train.py"), run_name="__main__")
