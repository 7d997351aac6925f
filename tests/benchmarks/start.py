"""How long users wait for a start: `python -m tests.benchmarks.start [--beside CHECKOUT] [--rounds 5]`.

Times whole processes of this checkout, and of another one beside it, in turns. `first token` is from the command to the
first call of the rollout engine in the default run. The first round, `cold`, has an empty cache folder and does not
count; the others find what it has kept there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTS = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "a key that is misspelt": ["+updates.rolout_steps=3"],
    "dry_run=true": ["dry_run=true"],
    "first token": [],
    "one step": ["updates.rollout_steps=1", "trainer.val_check_interval=1", "data.limit_val=8", "benchmark=[]"],
}
UNTIL_THE_FIRST_TOKEN = """
import importlib.abc, importlib.machinery, os, runpy, sys

class StopAtGenerate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "src.rollout.native.engine":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            module.NativeEngine.generate = lambda *_, **__: os._exit(0)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, StopAtGenerate())
sys.path.insert(0, os.getcwd())
sys.argv = ["src/train.py", *sys.argv[1:]]
runpy.run_path("src/train.py", run_name="__main__")
raise SystemExit("nothing was sampled")
"""


def seconds(checkout: Path, name: str, cache: Path) -> float:
    """Wall time of one start."""
    with tempfile.TemporaryDirectory() as folder:
        program = ["-c", UNTIL_THE_FIRST_TOKEN] if name == "first token" else ["src/train.py"]
        places = [] if name in ("--help", "--cfg job") else [f"hydra.run.dir={folder}", f"paths.cache_dir={cache}"]
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, *program, *STARTS[name], *places], cwd=checkout, capture_output=True, text=True
        )
        taken = time.perf_counter() - started
    if run.returncode != (1 if "misspelt" in name else 0):
        raise SystemExit(f"{checkout}: {name} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="another checkout, run by the same Python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="names of starts, with commas between them")
    settings = parser.parse_args()
    checkouts = [ROOT, *([settings.beside.resolve()] if settings.beside else [])]
    names = settings.only.split(",") if settings.only else list(STARTS)
    print("| start | here: median (least, greatest) s | cold | beside | ratio by round |\n|---|---|---|---|---|")
    for name in names:
        taken: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        with tempfile.TemporaryDirectory() as caches:
            for _ in range(settings.rounds + 1):
                for index, checkout in enumerate(checkouts):
                    taken[checkout].append(seconds(checkout, name, Path(caches) / str(index)))
        here, *others = (times[1:] for times in taken.values())
        row = [name, _shown(here), f"{taken[ROOT][0]:.1f}"]
        if others:
            row += [_shown(others[0]), f"{statistics.median(a / b for a, b in zip(here, others[0], strict=True)):.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)


def _shown(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f}, {max(times):.2f})"


if __name__ == "__main__":
    main()
