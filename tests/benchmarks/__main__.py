"""`make bench`: how fast and how large the parts are, against peers and against the machine. Asserts nothing of them.

    make bench ARGS="--quick"                                        # a look of five minutes
    make bench ARGS="--only update,rollout --repeats 7 --json bench.json"
    make bench ARGS="--settings smollm2 --data rlla_sft.json"        # real prompts

Each contestant has a process of its own. They take turns, A B C A B C …, so that a machine that drifts drifts for all;
medians of the ratios round by round are printed, with their range, beside the bar that the project wants to reach.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result
from tests.benchmarks.report import dump
from tests.benchmarks.sections import efficiency, growth, head, memory, precision, rollout, scoring, step, update
from tests.benchmarks.settings import SETTINGS

SECTIONS = {
    "step": step.measure,
    "update": update.measure,
    "rollout": rollout.measure,
    "efficiency": efficiency.measure,
    "head": head.measure,
    "memory": memory.measure,
    "scoring": scoring.measure,
    "precision": precision.measure,
    "growth": growth.measure,
}
_QUICK = ("step", "update", "rollout", "head", "scoring", "growth")


def main() -> None:
    args = _arguments()
    names = args.only or (_QUICK if args.quick else tuple(SECTIONS))
    settings = args.settings or (("tiny",) if args.quick else tuple(SETTINGS))
    for peer in ("trl", "vllm"):
        if not has_peer(peer):
            print(f"{peer} is left out: its environment is not there (make bench-peers).")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            repeats=args.repeats or (2 if args.quick else 5),
            settings=tuple(SETTINGS[name] for name in settings),
            data=args.data,
            quick=args.quick,
            images=args.images,
        )
        for name in names:
            for result in SECTIONS[name](bench):
                results.append(result)
                print(result, flush=True)
                if args.json:
                    args.json.write_text(dump(environment() | bench.versions, results))
    missed = [result for result in results if result.met is False]
    print(f"{len(results)} numbers; of the bars, {sum(r.met is True for r in results)} met, {len(missed)} not.")


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        **{name: os.environ[name] for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT") if name in os.environ},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names(SECTIONS), help=f"of {','.join(SECTIONS)}; default: all")
    parser.add_argument("--settings", type=_names(SETTINGS), help=f"of {','.join(SETTINGS)}; default: all")
    parser.add_argument("--repeats", type=int, help="counted rounds; default 5, quick 2")
    parser.add_argument("--quick", action="store_true", help="the tiny setting, two rounds, few points")
    parser.add_argument("--data", type=Path, help="rlla file for the prompts; default: the synthetic corpus")
    parser.add_argument("--json", type=Path, help="write the numbers there, as they come")
    parser.add_argument("--images", type=Path, help="folder for the picture of growth: docs/images")
    return parser.parse_args()


def _names(known: dict[str, Any]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"expected some of {list(known)}, found {sorted(unknown)}")
        return names

    return parse


if __name__ == "__main__":
    main()
