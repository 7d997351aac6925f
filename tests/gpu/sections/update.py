"""(3) An update of 12 layers of the 8B shape: speed, share of the peak, memory against the plan, AdamW's forms; TRL."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from src.models.loading.architecture import KNOWN
from src.models.policy import Policy
from tests.benchmarks import bench
from tests.benchmarks.contestants.update import Updates
from tests.benchmarks.measuring import ratios, take_turns
from tests.benchmarks.memory import measure
from tests.benchmarks.models import random_model, write_random
from tests.benchmarks.padded import random_groups
from tests.benchmarks.sections.step import Steps
from tests.benchmarks.sections.update import timed
from tests.benchmarks.serving import ContestantError
from tests.benchmarks.settings import QWEN3, SMALL, Setting
from tests.gpu.sections.machine import fastest, product_peak
from tests.gpu.settings import Found, Proof

LAYERS = 12
MEMORY_BAR = 0.75
"""Least predicted peak over the measured one: a run that the plan lets start must fit."""


def updates(proof: Proof, *, checkpointing: bool = True) -> Updates:
    """Of 12 layers of the 8B shape with random weights on a row of 16,352 tokens; of a small model on 612."""
    if proof.small:
        shape = {
            "vocabulary": 4096,
            "width": 256,
            "inner": 768,
            "layers": 3,
            "heads": 8,
            "kv_heads": 4,
            "head_size": 32,
        }
        prompts, completions, length = [torch.arange(300)], 8, 40
    else:
        shape = _shape_8b()
        prompts, completions, length = [torch.arange(1024) + 1024 * index for index in range(4)], 8, 384
    with proof.where:
        model = random_model(**shape)
    policy = Policy(model, gradient_checkpointing=checkpointing).to(proof.where).train()
    groups = [group.to(proof.where) for group in random_groups(prompts, completions, length, shape["vocabulary"])]
    return Updates(policy, groups, bf16=proof.cuda)


def prove(proof: Proof) -> Iterator[Found]:
    dtype = torch.bfloat16 if proof.cuda else torch.float32
    peak = product_peak(proof, dtype, 512 if proof.small else 8192)
    for checkpointing in (True, False):
        case = f"{'3 small layers' if proof.small else f'{LAYERS} layers of 8B'}, checkpointing {checkpointing}"
        try:
            yield from _speed(proof, updates(proof, checkpointing=checkpointing), case, peak, optimizers=checkpointing)
        except torch.OutOfMemoryError as error:
            if checkpointing:
                raise
            yield f"{case}: {str(error).split('.')[0]}"
        if proof.cuda:
            torch.cuda.empty_cache()
    yield from _memory(proof)
    yield from _trl(proof)


def _speed(proof: Proof, work: Updates, case: str, peak: float, *, optimizers: bool) -> Iterator[Found]:
    seconds = fastest(proof, work.update, repeats=3)
    tokens = sum(len(group.prompt_ids) + len(group.token_ids) for group in work.groups)
    flops = work.flops() / seconds
    yield proof.result(
        "update",
        case,
        "share of the matrix-product peak",
        flops / peak,
        details={"tokens/s": tokens / seconds, "s": seconds, "TFLOP/s": flops / 1e12},
    )
    yield proof.result("update", case, "memory above the model", work.memory() / 2**30, unit=" GiB")
    if not optimizers:
        return
    work.update()
    times = {}
    for form, options in {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        optimizer = torch.optim.AdamW(work.policy.parameters(), lr=1e-6, **options)  # type: ignore[arg-type]
        times[form] = fastest(proof, optimizer.step, repeats=2)
        del optimizer
    yield proof.result(
        "update",
        case,
        "AdamW's loop over its fused form",
        times["loop"] / times["fused"],
        details={f"{form} s": taken for form, taken in times.items()},
    )


def _memory(proof: Proof) -> Iterator[Found]:
    """Predicted and measured peaks of the phases of an update, of the published settings cut to 12 layers."""
    folder = proof.folder / "cut"
    if proof.small:
        write_random(folder)
        prompt, completion, groups = 300, 64, 2
    else:
        folder.mkdir(parents=True, exist_ok=True)
        architecture = json.loads((KNOWN / "Qwen3-8B.json").read_text()) | {"num_hidden_layers": LAYERS}
        (folder / "config.json").write_text(json.dumps(architecture))
        prompt, completion, groups = 1024, 384, 4
    given = [
        "experiment=qwen3_8b",
        "trainer=default",
        "rollout=native",
        "benchmark=[]",
        "policy.hub_id=null",
        "policy.weights=random",
        f"policy.path={folder}",
        f"data.max_prompt_tokens={prompt}",
        f"sampling.max_new_tokens={completion}",
        f"updates.prompts_per_minibatch={groups}",
        f"trainer.accelerator={'gpu' if proof.cuda else 'cpu'}",
        f"trainer.precision={'bf16-mixed' if proof.cuda else '32-true'}",
    ]
    for phase, (predicted, measured) in measure(given, ("scoring", "update", "step")).items():
        is_peak = phase == "peak"
        yield proof.result(
            "update",
            phase,
            "predicted memory over measured",
            predicted / measured,
            bar=MEMORY_BAR if is_peak and proof.cuda else None,
            details={"predicted GiB": predicted / 2**30, "measured GiB": measured / 2**30},
        )


def _trl(proof: Proof) -> Iterator[Found]:
    own = bench.has_peer("trl")
    if not own and importlib.util.find_spec("trl") is None:
        yield "TRL is left out: it is not installed."
        return
    setting = SMALL if proof.small else replace(QWEN3, trl_rows=4)
    with (
        mock.patch.dict(bench.PYTHON, {} if own else {"trl": Path(sys.executable)}),
        tempfile.TemporaryDirectory(dir=proof.folder) as folder,
    ):
        run = bench.Bench(Path(folder), repeats=1 if proof.small else 2, settings=(setting,))
        try:
            yield from against_trl(proof, run, setting)
        except ContestantError as error:
            yield f"TRL is left out: {' '.join(str(error).split())[-300:]}"


def against_trl(proof: Proof, run: bench.Bench, setting: Setting) -> Iterator[Found]:
    """Time and peak memory of forward and backward."""
    where = {"device": proof.device, "bf16": proof.cuda}
    with (
        run.start("update", run.update_job(setting, "packed", **where)) as ours,
        run.start("trl", run.trl_job(setting, **where)) as trl,
    ):
        Steps("TRL", trl, setting)(0)  # a rollout of the right size, whose completions the updates are of
        seconds = take_turns({"ours": timed(ours), "TRL": timed(trl)}, run.repeats)
        peaks = {name: float(one.ask("memory")["bytes"]) for name, one in (("ours", ours), ("TRL", trl))}
    case = f"{setting.name}, {setting.case}"
    value, low, high = ratios(seconds["TRL"], seconds["ours"])
    details = {f"{name} s": statistics.median(taken) for name, taken in seconds.items()}
    yield proof.result("update", case, "times as fast as TRL", value, low=low, high=high, details=details)
    details = {f"{name} MiB": peak / 2**20 for name, peak in peaks.items()}
    yield proof.result("update", case, "peak memory over that of TRL", peaks["ours"] / peaks["TRL"], details=details)


def _shape_8b() -> dict[str, int]:
    about = json.loads((KNOWN / "Qwen3-8B.json").read_text())
    return {
        "vocabulary": about["vocab_size"],
        "width": about["hidden_size"],
        "inner": about["intermediate_size"],
        "layers": LAYERS,
        "heads": about["num_attention_heads"],
        "kv_heads": about["num_key_value_heads"],
        "head_size": about["head_dim"],
    }
