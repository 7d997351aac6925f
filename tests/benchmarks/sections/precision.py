"""(g) What halves and fuses on a GPU, as far as a CPU shows it: the head's operands, AdamW on shards, weight syncs.

A CPU has no product of bf16 operands into float32: it rounds both and multiplies in float32, so that its head under
autocast is the slower one. Shards are those of the first of two ranks, the other of which is not there; what it would
send is not waited for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from src.models.loading.lora import merged_named_tensors
from src.training.optimizers import OptimizerSettings, build_optimizer
from tests.benchmarks.bench import Bench
from tests.benchmarks.contestants.head import ours
from tests.benchmarks.measuring import Result, ratios, take_turns
from tests.benchmarks.models import random_model
from tests.models.sharded import GatheredBytes, first_of_two_ranks, shard

_HEAD = {"tokens": 1024, "vocabulary": 100_000, "hidden": 576}
_QUICK = {"tokens": 128, "vocabulary": 20_000, "hidden": 256}


def measure(bench: Bench) -> Iterator[Result]:
    yield _head(bench)
    with first_of_two_ranks() as mesh:
        yield _adamw(bench, mesh)
        yield _sync(mesh)


def _head(bench: Bench) -> Result:
    shape = _QUICK if bench.quick else _HEAD
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape["tokens"], shape["hidden"], generator=generator).requires_grad_()
    weight = torch.randn(shape["vocabulary"], shape["hidden"], generator=generator).mul_(0.04).requires_grad_()
    targets = torch.randint(shape["vocabulary"], (shape["tokens"],), generator=generator)

    def update(half: bool) -> Callable[[int], float]:
        def run() -> None:
            hidden.grad = weight.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                ours(hidden, weight, targets, torch.ones(len(targets))).backward()

        return _timed(run)

    case = f"{shape['tokens']} tokens × {shape['vocabulary']} vocabulary, hidden size {shape['hidden']}"
    runs = {"bf16": update(True), "float32": update(False)}
    return _compared(bench, case, "head's time with bf16 operands, of float32's", runs)


def _adamw(bench: Bench, mesh: DeviceMesh) -> Result:
    """The step of 28 layers of seven matrices, whose sizes hardly matter to a loop: it is many small operations."""
    size, layers = (64, 4) if bench.quick else (256, 28)

    def step(fused: bool) -> Callable[[int], float]:
        tensors = [torch.zeros(size, size) for _ in range(7 * layers)]
        weights = [nn.Parameter(distribute_tensor(one, mesh, [Shard(0)], src_data_rank=None)) for one in tensors]
        named = [(str(index), weight) for index, weight in enumerate(weights)]
        optimizer, _ = build_optimizer(named, OptimizerSettings(1e-3), 10)
        optimizer.param_groups[0]["fused"] = fused or None
        for weight in weights:
            weight.grad = torch.ones_like(weight)

        def run() -> None:  # holds the optimizer, which its method alone does not: the schedule has wrapped it
            optimizer.step()

        return _timed(run)

    case = f"{7 * layers} shards of {size // 2} x {size}"
    return _compared(bench, case, "AdamW's time fused, of the loop's", {"fused": step(True), "loop": step(False)})


def _sync(mesh: DeviceMesh) -> Result:
    """Bytes of the weights as an engine in bfloat16 gets them, from float32 shards."""
    model = random_model(4096)
    shard(model, mesh)
    found = {}
    for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
        with GatheredBytes() as gathered:
            for _ in merged_named_tensors(model, dtype):
                pass
        found[f"{name} MiB"] = gathered.bytes / 2**20
    value = found["bf16 MiB"] / found["float32 MiB"]
    return Result("precision", "-", "tiny", "bytes gathered by a weight sync, of float32's", value, details=found)


def _compared(bench: Bench, case: str, quantity: str, runs: dict[str, Callable[[int], float]]) -> Result:
    seconds = take_turns(runs, bench.repeats)
    value, low, high = ratios(*seconds.values())
    details = {f"{name} s": statistics.median(taken) for name, taken in seconds.items()}
    return Result("precision", "-", case, quantity, value, low, high, details=details)


def _timed(run: Callable[[], None]) -> Callable[[int], float]:
    def timed(_: int) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return timed
