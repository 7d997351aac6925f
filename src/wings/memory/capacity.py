"""How much memory this process may use: of a GPU, or of this machine within its control group."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from src.wings.memory.plan import Capacity

_CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def device_capacity(cuda: bool, ranks: int) -> Capacity:
    """Of each of `ranks` processes on this machine: its GPU, or its share of the free memory and what it has by now."""
    if cuda:
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        return Capacity(min(sizes), "of the GPU") if sizes else Capacity(None, "no GPU on this machine")
    host = host_capacity()
    share = (host.bytes or 0) // ranks + resident_bytes()
    return Capacity(share, host.source + (f", for each of {ranks} processes" if ranks > 1 else ""))


def host_capacity(cgroup: Path = _CGROUP) -> Capacity:
    """Free memory of this machine, or what its control group leaves of its limit, whichever is less."""
    free = int(psutil.virtual_memory().available)
    left = _cgroup_left(cgroup)
    if left is not None and left < free:
        return Capacity(left, "left by the control group's limit")
    return Capacity(free, "free on this machine")


def _cgroup_left(cgroup: Path) -> int | None:
    """Bytes under the limit of control groups v2 or v1; page cache that can be dropped counts as free."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        file = cgroup / limit
        if not file.is_file():
            continue
        text = file.read_text().strip()
        if text == "max":
            return None
        stat = (cgroup / used).with_name("memory.stat").read_text().split()
        droppable = dict(zip(stat[::2], map(int, stat[1::2]), strict=True)).get(cache, 0)
        return max(0, int(text) - int((cgroup / used).read_text()) + droppable)
    return None
