"""What a prediction of memory looks like: named parts, each with its bytes in every phase of a rollout step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    """

    parts: tuple[MemoryPart, ...]
    capacity: Capacity
    host_parts: tuple[MemoryPart, ...] = ()
    host_capacity: Capacity = Capacity(None, "")
    assumptions: tuple[str, ...] = ()

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
