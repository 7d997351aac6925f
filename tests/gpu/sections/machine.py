"""(0) What the machine is, and the ceilings that other sections are measured by: copies and matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from src.runs.summary import versions
from tests.gpu.settings import Found, Proof


def prove(proof: Proof) -> Iterator[Found]:
    yield ", ".join(f"{name} {version}" for name, version in versions().items())
    if proof.cuda:
        about = torch.cuda.get_device_properties(0)
        yield (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}, "
            f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
        )
    else:
        yield f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    size = 1 << (26 if proof.small else 32)
    source = torch.zeros(size, dtype=torch.uint8, device=proof.where)
    target = torch.empty_like(source)
    seconds = fastest(proof, partial(target.copy_, source))
    yield proof.result(
        "machine", f"{size >> 20} MiB", "copy, bytes read and written", 2 * size / seconds / 1e9, unit=" GB/s"
    )
    del source, target  # they are most of a small GPU
    for dtype in (torch.bfloat16, torch.float32):
        side = (512 if proof.small else 8192) if dtype == torch.bfloat16 else (1024 if proof.small else 4096)
        peak = product_peak(proof, dtype, side)
        case = f"{str(dtype).removeprefix('torch.')}, {side} x {side}"
        yield proof.result("machine", case, "matrix products", peak / 1e12, unit=" TFLOP/s")


def product_peak(proof: Proof, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a product of square matrices."""
    a, b = (torch.randn(side, side, device=proof.where, dtype=dtype) for _ in range(2))
    return 2 * side**3 / fastest(proof, lambda: torch.mm(a, b))


def fastest(proof: Proof, work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs; one before them does not count."""
    best = float("inf")
    for index in range(repeats + 1):
        proof.synchronise()
        started = time.perf_counter()
        work()
        proof.synchronise()
        best = best if index == 0 else min(best, time.perf_counter() - started)
    return best
