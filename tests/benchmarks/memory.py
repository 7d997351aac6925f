"""Predicted against measured memory, phase by phase, with rows and prompts as long as a config allows.

    python -m tests.benchmarks.memory                      # SmolLM2 and the tiny policy; 10 GB of memory, minutes
    python -m tests.benchmarks.memory --only smollm2       # settings whose name has this
    python -m tests.benchmarks.memory experiment=… key=…   # any config that fits one device, unsharded

Each setting has a process of its own. On the CPU the resident set is measured (Linux resets its high-water mark on
request), on CUDA what PyTorch's allocator handed out, which is without the context that the plan counts as `runtime`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from src.algorithm.packing import PackedRow
from src.models.loading.architecture import load_architecture
from src.models.loading.loading import load_model
from src.models.policy import Policy
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.runs.folder import GIB
from src.training.optimizers import build_optimizer
from src.wings.memory.preflight import plan_memory
from src.wings.memory.training_parts import RowShape, longest_rows
from tests.conftest import ROOT, train_config

PHASES = ("rollout", "scoring", "update", "step")
SMOLLM2 = ("experiment=smollm2_135m", f"paths.cache_dir={ROOT}/logs/cache")
SETTINGS = {
    "smollm2": SMOLLM2,
    "smollm2, rows of 1024": (*SMOLLM2, "updates.max_row_tokens=1024", "data.max_prompt_tokens=512", "sampling.n=2"),
    "smollm2, rows of 3576": (*SMOLLM2, "updates.max_row_tokens=4096"),
    "smollm2, checkpointing": (*SMOLLM2, "policy.gradient_checkpointing=true"),
    "tiny": ("experiment=tiny", "benchmark=[]"),
}
ON_CUDA = {
    f"{name}, CUDA": (*overrides, "trainer.accelerator=gpu", "trainer.precision=bf16-mixed")
    for name, overrides in {
        "smollm2": SMOLLM2,
        "qwen3-1.7b at random": ("experiment=qwen3_1_7b", "policy.weights=random", "benchmark=[]", "sampling.n=4"),
    }.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name has this")
    parser.add_argument("--phases", default=",".join(PHASES), help="comma-separated")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="measure this config instead")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.overrides, args.phases.split(","))))
        return
    known = SETTINGS | (ON_CUDA if torch.cuda.is_available() else {})
    settings = {"given": tuple(args.overrides)} if args.overrides else known
    for name, overrides in settings.items():
        if args.only in name or args.overrides:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.memory",
                "--measure",
                "--phases",
                args.phases,
                *overrides,
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-2000:]}")
            show(name, json.loads(done.stdout.splitlines()[-1]))


def show(name: str, phases: dict[str, tuple[int, int]]) -> None:
    print(name)
    for phase, (predicted, measured) in phases.items():
        ratio = predicted / measured - 1
        print(f"  {phase:10} predicted {predicted / GIB:6.2f} GiB  measured {measured / GIB:6.2f} GiB  {ratio:+7.1%}")


def measure(overrides: list[str], wanted: Sequence[str] = PHASES) -> dict[str, tuple[int, int]]:
    """(predicted, measured) bytes of each phase and of the peak, in this process."""
    config = train_config(Path(tempfile.mkdtemp()), *overrides)
    if given := [item for item in overrides if item.startswith("paths.cache_dir=")]:
        config.paths.cache_dir = given[0].partition("=")[2]
    plan = plan_memory(config)
    cuda = config.trainer.accelerator == "gpu"
    device = torch.device("cuda" if cuda else "cpu")
    runtime = plan.parts[0].most if cuda else 0
    policy, optimizer = _policy(config, device)
    autocast = torch.autocast(
        device.type, torch.bfloat16, "mixed" in str(config.trainer.precision), cache_enabled=False
    )
    shapes = longest_rows(
        config.updates.max_row_tokens, config.updates.prompts_per_minibatch,
        config.data.max_prompt_tokens, config.sampling.n, config.sampling.max_new_tokens,
    )  # fmt: skip
    rows = [_random(shape, policy.model.config.vocab_size).to(device) for shape in shapes]
    engine = NativeEngine(policy.model, max_batch_tokens=config.rollout.max_batch_tokens)
    sampling = SamplingParams(config.sampling.n, max_new_tokens=config.sampling.max_new_tokens)
    prompts = [
        torch.randint(policy.model.config.vocab_size, (config.data.max_prompt_tokens,))
    ] * config.data.prompts_per_step

    def rollout() -> None:
        with autocast:
            engine.generate(prompts, sampling, range(len(prompts)))

    def scoring() -> None:
        for row in rows:
            with autocast, torch.no_grad():
                policy(row)

    def update() -> None:
        for row in rows:
            with autocast:
                scores = policy(row, temperature=0.9)
                loss = (scores.logprobs + scores.entropies).sum()
            loss.backward()

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    for action in (update, step):  # so that gradients and moments are there
        action()
    phases = {"rollout": rollout, "scoring": scoring, "update": update, "step": step}
    measured = {name: _peak(phases[name], cuda) for name in wanted}
    predicted = dict(plan.phases)
    predicted["update"] = max(predicted.pop(part) for part in ("head", "layers", "embeddings"))
    found = {name: (predicted[name] - runtime, measured[name]) for name in wanted}
    return found | {"peak": tuple(max(pair[side] for pair in found.values()) for side in (0, 1))}


def _policy(config: DictConfig, device: torch.device) -> tuple[Policy, torch.optim.Optimizer]:
    settings = instantiate(config.policy)
    if settings.weights == "random":
        with device:
            model = AutoModelForCausalLM.from_config(load_architecture(settings), dtype=getattr(torch, settings.dtype))
    else:
        model = load_model(settings)
    policy = Policy(model, gradient_checkpointing=settings.gradient_checkpointing, head_chunk=settings.head_chunk)
    policy.to(device).train()
    return policy, build_optimizer(policy.named_parameters(), instantiate(config.optimizer), 10)[0]


def _random(shape: RowShape, vocabulary: int) -> PackedRow:
    row = shape.row()
    return PackedRow(
        input_ids=torch.randint(vocabulary, row.input_ids.shape),
        position_ids=row.position_ids,  # memory does not depend on them
        score_positions=torch.arange(shape.scored) % shape.tokens,
        sequences=row.sequences,
        targets=torch.randint(vocabulary, row.targets.shape),
        layouts=row.layouts,
    )


def _peak(action: Callable[[], None], cuda: bool) -> int:
    """Most bytes in use while `action` runs."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        action()
        return int(torch.cuda.max_memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    action()
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


if __name__ == "__main__":
    main()
