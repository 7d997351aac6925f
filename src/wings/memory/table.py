"""A memory plan as a table on the console."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from src.wings.memory.plan import PHASES, Capacity, MemoryPart, MemoryPlan

GIB = 1 << 30


def show_plan(plan: MemoryPlan, console: Console | None = None) -> None:
    """Print the plan: a row a part, a column a phase, GiB of one rank."""
    (console or Console()).print(render_plan(plan))


def render_plan(plan: MemoryPlan) -> RenderableType:
    """The table, what its parts and phases are, and the verdict."""
    table = Table(title="Predicted memory of each rank, GiB", title_justify="left", show_footer=True)
    table.add_column("part", footer="sum", no_wrap=True)
    for phase, total in plan.phases.items():
        style = "bold" if phase == plan.peak_phase else ""
        table.add_column(phase, justify="right", footer=_gib(total), style=style, footer_style="bold", no_wrap=True)
    for part in plan.parts:
        table.add_row(part.name, *(_gib(part.bytes.get(phase, 0)) for phase in plan.phases))
    lines = [*plan.assumptions, ""]
    lines += [f"{part.name}: {part.explanation}" for part in plan.parts]
    lines += ["", *(f"{phase}: {PHASES[phase]}" for phase in plan.phases)]
    if plan.host_parts:
        lines += ["", f"Host memory of a node: {_listed(plan.host_parts)}; {_verdict(plan.host, plan.host_capacity)}"]
    lines += ["", f"Peak in '{plan.peak_phase}': {_verdict(plan.peak, plan.capacity)}"]
    if not plan.fits:
        lines += [f"To change, by effect: {'; '.join(plan.changes())}"]
    return Group(table, Text("\n".join(lines)))


def _verdict(needed: int, capacity: Capacity) -> str:
    if capacity.bytes is None:
        return f"{_gib(needed)} GiB; what there is, is not known ({capacity.source})."
    word = "fits" if needed <= capacity.bytes else "does not fit"
    return f"{_gib(needed)} GiB of {_gib(capacity.bytes)} GiB ({capacity.source}): {word}."


def _listed(parts: tuple[MemoryPart, ...]) -> str:
    return ", ".join(f"{part.name} {_gib(part.most)}" for part in parts)


def _gib(size: int) -> str:
    """Two decimals; nothing for nothing.

    >>> _gib(3 << 29), _gib(0)
    ('1.50', '')
    """
    return f"{size / GIB:.2f}" if size else ""
