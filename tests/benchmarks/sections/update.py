"""(a) Forward and backward: ours against our own padded form and against TRL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result, take_turns, times_as_fast
from tests.benchmarks.serving import Contestant

BAR = 3.5
"""Over the padded form, at the tiny setting."""

_TOLERANCE = 1e-3


class DifferentWorkError(RuntimeError):
    """Contestants did not do the same work, so that their times cannot be compared."""


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        with ExitStack() as stack:
            contestants = {
                name: stack.enter_context(bench.start("update", bench.update_job(setting, form)))
                for name, form in (("ours", "packed"), ("padded rows", "padded"))
            }
            if has_peer("trl"):
                contestants["TRL"] = stack.enter_context(bench.start("trl", bench.trl_job(setting)))
                contestants["TRL"].ask("step")  # a rollout, whose completions the updates are of
            check_same_update(*(contestants[name] for name in ("ours", "padded rows")))
            seconds = take_turns({name: timed(contestant) for name, contestant in contestants.items()}, bench.repeats)
        bars = {"padded rows": BAR if setting.name == "tiny" else None, "TRL": None}
        yield from times_as_fast("update", setting.name, setting.case, seconds, bars)


def timed(contestant: Contestant, task: str = "update", **arguments: Any) -> Any:
    """What `take_turns` wants of a contestant."""
    return lambda _: float(contestant.ask(task, **arguments)["seconds"])


def check_same_update(ours: Contestant, other: Contestant) -> None:
    """Two forms give the same loss and the same gradient.

    Raises:
        DifferentWorkError: they do not.
    """
    found = [contestant.ask("update") for contestant in (ours, other)]
    for key in ("loss", "gradient_norm"):
        a, b = (reply[key] for reply in found)
        if abs(a - b) > _TOLERANCE * max(abs(a), abs(b), 1e-3):
            raise DifferentWorkError(f"update: expected the same {key} of both forms, found {a} and {b}.")
