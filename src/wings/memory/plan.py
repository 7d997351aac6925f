"""A prediction of memory: named parts, their bytes in every phase of a rollout step, what there is, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from src.runs.folder import GIB
from src.wings.memory.engine_room import EngineRoom

_CGROUP = Path("/sys/fs/cgroup")

Phase = Literal["warm start", "rollout", "scoring", "head", "layers", "embeddings", "step", "handover"]

PHASES: Mapping[Phase, str] = {
    "warm start": "the supervised stage before the first rollout",
    "rollout": "completions are sampled",
    "scoring": "forwards without gradients",
    "head": "backward of the output head, with every activation of the row kept",
    "layers": "backward of the decoder layers",
    "embeddings": "end of the backward",
    "step": "the optimizer step",
    "handover": "weights go to the engine",
}
"""What happens in each phase, in order."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One named use of memory on one device.

    Attributes:
        name: of the part.
        explanation: what it is, in a line.
        bytes: by phase; a phase that is missing has none of it.
        keys: config changes that make it smaller.
    """

    name: str
    explanation: str
    bytes: Mapping[Phase, int]
    keys: tuple[str, ...] = ()

    @classmethod
    def always(cls, name: str, explanation: str, size: float, keys: tuple[str, ...] = ()) -> MemoryPart:
        """A part that is there in every phase."""
        return cls(name, explanation, dict.fromkeys(PHASES, int(size)), keys)

    @property
    def most(self) -> int:
        """Bytes in its largest phase."""
        return max(self.bytes.values(), default=0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Memory that a process may use.

    Attributes:
        bytes: of it; None: not known.
        source: where the number comes from.
    """

    bytes: int | None
    source: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted memory of one rank. The peak is that of the largest phase, not the sum of all parts.

    Attributes:
        parts: on the device.
        capacity: of the device.
        host_parts: what all ranks of a node offload to host memory, together.
        host_capacity: of the node.
        assumptions: lines on what was counted.
        bounds: lines on what was bounded instead.
        engine: of vLLM in the trainer's processes.
    """

    parts: tuple[MemoryPart, ...]
    capacity: Capacity
    host_parts: tuple[MemoryPart, ...] = ()
    host_capacity: Capacity = Capacity(None, "")
    assumptions: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    engine: EngineRoom | None = None

    @property
    def phases(self) -> dict[Phase, int]:
        """Bytes of each phase, in order; the warm start only where there is one."""
        totals = {phase: sum(part.bytes.get(phase, 0) for part in self.parts) for phase in PHASES}
        if not any(set(part.bytes) == {"warm start"} for part in self.parts):  # the stage's own batch
            del totals["warm start"]
        return totals

    @property
    def peak_phase(self) -> Phase:
        """The phase that takes most."""
        totals = self.phases
        return max(totals, key=lambda phase: totals[phase])

    @property
    def peak(self) -> int:
        """Bytes of that phase."""
        return self.phases[self.peak_phase]

    @property
    def host(self) -> int:
        """Bytes in host memory beside the devices."""
        return sum(part.most for part in self.host_parts)

    @property
    def fits(self) -> bool:
        """Whether device and host have what is predicted, and an engine starts, as far as that is known."""
        return self.has_room and (self.engine is None or self.engine.fits)

    @property
    def has_room(self) -> bool:
        """Whether device and host have what is predicted, as far as that is known."""
        sides = ((self.peak, self.capacity), (self.host, self.host_capacity))
        return all(capacity.bytes is None or needed <= capacity.bytes for needed, capacity in sides)

    def largest(self, count: int = 4) -> list[MemoryPart]:
        """Parts that take most at the peak, largest first."""
        phase = self.peak_phase
        return sorted(self.parts, key=lambda part: -part.bytes.get(phase, 0))[:count]

    def changes(self) -> list[str]:
        """Config changes that lower the peak, by the bytes of the parts that each of them touches."""
        phase = self.peak_phase
        touched: Counter[str] = Counter()
        for part in self.parts:
            for key in part.keys:
                touched[key] += part.bytes.get(phase, 0)
        return [key for key, size in touched.most_common() if size]


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


def show_plan(plan: MemoryPlan, console: Console | None = None) -> None:
    """Print the plan: a row a part, a column a phase, GiB of one rank; what they are, and the verdict."""
    table = Table(box=box.SIMPLE, padding=0, show_edge=False, show_footer=True)  # 80 columns with a warm start
    table.add_column("part", footer="sum", no_wrap=True)
    for phase, total in plan.phases.items():
        style = "bold" if phase == plan.peak_phase else ""
        table.add_column(phase, justify="right", footer=_gib(total), style=style, footer_style="bold")
    for part in plan.parts:
        table.add_row(part.name, *(_gib(part.bytes.get(phase, 0)) for phase in plan.phases))
    lines = [*plan.assumptions, *plan.bounds, ""]
    lines += [f"{part.name}: {part.explanation}" for part in plan.parts]
    lines += ["", *(f"{phase}: {PHASES[phase]}" for phase in plan.phases)]
    if plan.host_parts:
        listed = ", ".join(f"{part.name} {_gib(part.most)}" for part in plan.host_parts)
        lines += ["", f"Host memory of a node: {listed}; {_verdict(plan.host, plan.host_capacity)}"]
    lines += ["", f"Peak in '{plan.peak_phase}': {_verdict(plan.peak, plan.capacity)}"]
    if not plan.has_room:
        lines += [f"To change, by effect: {'; '.join(plan.changes())}"]
    if plan.engine is not None:
        lines += _engine_lines(plan.engine, plan.has_room)
    title = Text("Predicted memory of each rank, GiB", "italic")
    (console or Console()).print(Group(title, table, Text("\n".join(lines))))


def _verdict(needed: int, capacity: Capacity) -> str:
    if capacity.bytes is None:
        return f"{_gib(needed)} GiB; what there is, is not known ({capacity.source})."
    word = "fits" if needed <= capacity.bytes else "does not fit"
    return f"{_gib(needed)} GiB of {_gib(capacity.bytes)} GiB ({capacity.source}): {word}."


def _engine_lines(engine: EngineRoom, has_room: bool) -> list[str]:
    available = engine.available
    if available is None:
        verdict = "whether it starts, is not known."
    elif engine.fits:
        starts = "starts" if has_room else "would start if all the rest fitted"
        verdict = f"{starts}, with room for {available // engine.token} tokens." if engine.token else f"{starts}."
    else:
        verdict = f"does not start. To change: {engine.changes()}."
    return [f"vLLM with rollout.max_num_seqs={engine.sequences}: {engine}: {verdict}"]


def _gib(size: int) -> str:
    """Two decimals; nothing for nothing.

    >>> _gib(3 << 29), _gib(0)
    ('1.50', '')
    """
    return f"{size / GIB:.2f}" if size else ""
