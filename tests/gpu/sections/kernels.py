"""(7) The 15 dearest kernels of an update (operators on a CPU), by their own time."""

from __future__ import annotations

from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from tests.gpu.sections.update import updates
from tests.gpu.settings import Found, Proof

COUNT = 15


def prove(proof: Proof) -> Iterator[Found]:
    work = updates(proof)
    work.update()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if proof.cuda else [])]
    with profile(activities=activities) as recorded:
        work.update()
        proof.synchronise()
    column = "self_device_time_total" if proof.cuda else "self_cpu_time_total"
    times = {row.key: (getattr(row, column), row.count) for row in recorded.key_averages()}
    whole = sum(taken for taken, _ in times.values())
    for name, (taken, count) in sorted(times.items(), key=lambda item: -item[1][0])[:COUNT]:
        yield proof.result("kernels", _short(name), "own time", taken / 1e3, unit=" ms", details={
            "share": taken / whole, "calls": count,
        })  # fmt: skip


def _short(name: str, width: int = 80) -> str:
    return (name if len(name) <= width else f"{name[: width - 1]}…").replace("|", "¦")
