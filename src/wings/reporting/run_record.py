"""What a report knows of a run: its numbers by rollout step, and how it was made. Plain data: reads no files.

Figures are made from these records, by `src/report.py` from run folders and by callbacks from what they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Metrics = Mapping[str, float]

_MEASURED = ("rollout_step", "validation", "benchmark")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run.

    Attributes:
        kind: what: the name of an alarm, or the event of another line, e.g. `out_of_memory`.
        step: rollout step.
        text: what was found.
        advice: what to do about it; may be empty.
    """

    kind: str
    step: int
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, finished or not.

    Attributes:
        name: unique among the runs of a report.
        method: `algorithm.name` of its config.
        seed: None if the config has none.
        steps: metrics by rollout step, from 0; sampled by the weights after that many steps.
        validations: validation metrics by the number of rollout steps done.
        benchmarks: benchmark scores, likewise.
        events: alarms and faults, in order.
        settings: its config, keys joined by dots.
        summary: of `summary.json`; None while the run is unfinished.
        folder: the run folder, if there is one.
    """

    name: str
    method: str
    seed: int | None
    steps: Mapping[int, Metrics]
    validations: Mapping[int, Metrics] = field(default_factory=dict)
    benchmarks: Mapping[int, Metrics] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    folder: Path | None = None

    @classmethod
    def from_events(
        cls, name: str, method: str, seed: int | None, events: Iterable[tuple[str, int, Mapping[str, Any]]], **more: Any
    ) -> RunRecord:
        """A record from (event, rollout step, values), in order, as `metrics.jsonl` holds them.

        A step that is there twice, in files of runs that were stopped and went on, counts as it was last. Numbers that
        are none (strings) are left out of metrics.

        Args:
            name: see the attributes, as for the other arguments.
            method: likewise.
            seed: likewise.
            events: e.g. of `src.wings.comparing.run_folders.read_events`.
            more: the remaining attributes.

        >>> events = [("rollout_step", 0, {"a": 1.0}), ("rollout_step", 0, {"a": 2.0}), ("alarm", 0, {"alarm": "b"})]
        >>> record = RunRecord.from_events("rest-1", "rest", 1, events)
        >>> record.steps, record.events
        ({0: {'a': 2.0}}, (Event(kind='b', step=0, text='', advice=''),))
        """
        measured: dict[str, dict[int, Metrics]] = {event: {} for event in _MEASURED}
        others: dict[Event, None] = {}
        for event, step, values in events:
            if event in measured:
                numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
                measured[event][step] = {**measured[event].get(step, {}), **numbers}
            else:
                others[_event(event, step, values)] = None
        steps, validations, benchmarks = (dict(sorted(measured[event].items())) for event in _MEASURED)
        return cls(name, method, seed, steps, validations, benchmarks, tuple(others), **more)

    @property
    def finished(self) -> bool:
        """Whether it has a summary."""
        return self.summary is not None

    @property
    def steps_done(self) -> int:
        """Rollout steps that the weights of the end have seen."""
        return max((step + 1 for step in self.steps), default=0)

    @property
    def start(self) -> Metrics:
        """Validation and benchmarks before the first rollout step: the warm start's; empty if there were none."""
        return self._summarised("start") or {**self.validations.get(0, {}), **self.benchmarks.get(0, {})}

    @property
    def final(self) -> Metrics:
        """The latest validation and benchmarks; empty if there were none after the start."""
        if found := self._summarised("final"):
            return found
        last: dict[str, float] = {}
        for measured in (self.validations, self.benchmarks):
            after = [step for step in measured if step > 0]
            last |= measured[max(after)] if after else {}
        return last

    def curve(self, key: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """A metric: (steps, values) of the rollout steps that have it, or, of other metrics, of the measurements.

        >>> RunRecord("a", "rest", 1, {0: {"x": 1.0}, 1: {}, 2: {"x": 3.0}}).curve("x")
        ((0, 2), (1.0, 3.0))
        """
        for measured in (self.steps, self.validations, self.benchmarks):
            found = {step: values[key] for step, values in measured.items() if key in values}
            if found:
                return tuple(found), tuple(found.values())
        return (), ()

    def _summarised(self, when: str) -> Metrics:
        values = (self.summary or {}).get(when) or {}
        return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _event(event: str, step: int, values: Mapping[str, Any]) -> Event:
    if event == "alarm":
        return Event(str(values.get("alarm", event)), step, str(values.get("found", "")), str(values.get("advice", "")))
    return Event(event, step, ", ".join(f"{key} {value}" for key, value in values.items()))


def methods(runs: Sequence[RunRecord]) -> list[str]:
    """Their methods, each once, in the order in which they appear.

    >>> methods([RunRecord("a", "rest", 1, {}), RunRecord("b", "grpo", 1, {}), RunRecord("c", "rest", 2, {})])
    ['rest', 'grpo']
    """
    return list(dict.fromkeys(run.method for run in runs))
