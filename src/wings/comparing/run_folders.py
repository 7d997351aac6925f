"""Run folders as records: found, and read back for comparisons and reports. Reads files, writes none."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.errors import Refusal
from src.runs.config_file import load_config
from src.runs.line_file import LineError, read_lines

log = logging.getLogger(__name__)

Metrics = Mapping[str, float]

_FILES = ("config.yaml", "metrics.jsonl", "summary.json")
_MEASURED = ("rollout_step", "validation", "benchmark")


class ComparisonError(Refusal, ValueError):
    """Runs that cannot be compared or shown: names them, what was expected and what was found."""


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
    """One run, finished or not: plain data, which callbacks make from what they have seen.

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


def methods(runs: Sequence[RunRecord]) -> list[str]:
    """Their methods, each once, in the order in which they appear.

    >>> methods([RunRecord("a", "rest", 1, {}), RunRecord("b", "grpo", 1, {}), RunRecord("c", "rest", 2, {})])
    ['rest', 'grpo']
    """
    return list(dict.fromkeys(run.method for run in runs))


def given_folders(runs: str | Sequence[str] | None, hint: str) -> list[Path]:
    """The folders that a config's `runs` names, which is one or several.

    Raises:
        ComparisonError: it names none; ends with the hint.
    """
    if not runs:
        raise ComparisonError(f"runs: expected folders with runs, found none. {hint}")
    return [Path(str(folder)).expanduser() for folder in ([runs] if isinstance(runs, str) else runs)]


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(finished, unfinished) run folders in these folders, which may be run folders themselves.

    A run has a config, its own or Hydra's; it is finished once all of config.yaml, metrics.jsonl and summary.json are
    there.

    Raises:
        ComparisonError: a folder that is not there or holds no run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ComparisonError(f"runs: expected a folder, '{folder}' is none.")
        configs = [path for path in sorted(folder.rglob("config.yaml")) if _is_run(path, folder)]
        if not configs:
            raise ComparisonError(f"runs: expected run folders in '{folder}', found none ({', '.join(_FILES)}).")
        for path in configs:
            run = path.parent.parent if path.parent.name == ".hydra" else path.parent
            found[run.resolve()] = None
    finished = [run for run in found if all((run / name).is_file() for name in _FILES)]
    return finished, [run for run in found if run not in finished]


def _is_run(path: Path, folder: Path) -> bool:
    *parents, _ = path.relative_to(folder).parts
    return not any(part.startswith(".") and part != ".hydra" for part in parents)


def latest_run(folder: Path) -> Path:
    """The run in a folder of runs that finished last; if none is finished, the one that started last.

    Raises:
        ComparisonError: there is no run.
    """
    if not folder.is_dir():
        raise ComparisonError(f"runs: expected runs in '{folder}', found no such folder. Train one: make train")
    finished, unfinished = find_runs([folder])
    if finished:
        return max(finished, key=lambda run: (run / "summary.json").stat().st_mtime)
    newest = max(unfinished, key=lambda run: run.stat().st_mtime)
    log.warning("No run in '%s' is finished; this is the latest: '%s'.", folder, newest.name)
    return newest


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """All runs in these folders, run folders themselves or folders of them (sweeps, comparisons), with unique names.

    They are in the order of the folders, and by name in each. Unfinished runs are among them, unless they have no
    config or numbers yet.

    Raises:
        ComparisonError: a folder is not there or holds no run, or a run's files cannot be read.
    """
    found = dict.fromkeys(run for folder in folders for run in sorted(itertools.chain(*find_runs([folder]))))
    runs = []
    for folder in found:
        missing = [name for name in ("config.yaml", "metrics.jsonl") if not (folder / name).is_file()]
        if missing:
            log.warning("Left out, without %s: '%s'.", " and ".join(missing), folder)
        else:
            runs.append(read_run(folder))
    if not runs:
        raise ComparisonError(
            "runs: expected a run with config.yaml and metrics.jsonl (callbacks.metrics_file), found none in "
            f"{', '.join(map(repr, map(str, folders)))}."
        )
    return _named(runs)


def read_run(folder: Path) -> RunRecord:
    """A run, finished or not, stopped and resumed or not, of any method; named after its folder.

    Raises:
        ComparisonError: a file cannot be read, or a line of `metrics.jsonl` is no event.
    """
    config = _read_config(folder / "config.yaml")
    method, seed = OmegaConf.select(config, "algorithm.name"), OmegaConf.select(config, "seed")
    summary = _read_summary(folder / "summary.json")
    return RunRecord(
        folder.name,
        method if isinstance(method, str) else "unnamed",
        seed if isinstance(seed, int) else None,
        *sort_events(read_events(folder / "metrics.jsonl", growing=summary is None)),
        settings=flat_settings(config),
        summary=summary,
        folder=folder,
    )


def read_finished_run(folder: Path) -> RunRecord:
    """A finished run that can be compared with others; named after its folder.

    Raises:
        ComparisonError: see `read_run`; `algorithm.name` or the seed is missing, or there is not one line for every
            rollout step and a validation after the last.
    """
    run = read_run(folder)
    method, seed = run.settings.get("algorithm.name"), run.settings.get("seed")
    if not isinstance(method, str) or not isinstance(seed, int):
        raise ComparisonError(
            f"{folder / 'config.yaml'}: expected algorithm.name and seed, found {method!r} and {seed!r}. Add "
            "`name: METHOD` to its file in configs/algorithm."
        )
    path, expected = folder / "metrics.jsonl", int(cast(int, run.settings["updates.rollout_steps"]))
    indices = [step for event, step, _ in read_events(path) if event == "rollout_step"]
    if indices != list(range(expected)):
        raise ComparisonError(
            f"{path}: expected the rollout steps 0 to {expected - 1} once each, found {indices}. A run that was "
            "stopped and started again in its folder has some of them twice: run it anew."
        )
    if expected not in run.validations:
        raise ComparisonError(
            f"{path}: expected a validation at rollout step {expected}, found one at {sorted(run.validations)}."
        )
    return run


def read_events(path: Path, *, growing: bool = False) -> list[tuple[str, int, dict[str, Any]]]:
    """(event, rollout step, values) of each line of a `metrics.jsonl`. Values are numbers, those of alarms texts too.

    A last line without its line break is left out where the file is `growing`, as its run may be at work.

    Raises:
        ComparisonError: a line is no event.
    """
    try:
        lines, _ = read_lines(path, ("event", "rollout_step"), growing=growing)
        return [(str(line.pop("event")), int(line.pop("rollout_step")), line) for line in lines]
    except (LineError, ValueError, TypeError) as error:
        raise ComparisonError(str(error)) from error


def sort_events(
    events: Iterable[tuple[str, int, Mapping[str, Any]]],
) -> tuple[dict[int, Metrics], dict[int, Metrics], dict[int, Metrics], tuple[Event, ...]]:
    """(steps, validations, benchmarks, events) of a `RunRecord` from what `read_events` returns.

    A step that is there twice, in files of runs that were stopped and went on, counts as it was last. Numbers that are
    none (strings) are left out of metrics.

    >>> lines = [("rollout_step", 0, {"a": 1.0}), ("rollout_step", 0, {"a": 2.0}), ("alarm", 0, {"alarm": "b"})]
    >>> steps, _, _, events = sort_events(lines)
    >>> steps, events
    ({0: {'a': 2.0}}, (Event(kind='b', step=0, text='', advice=''),))
    """
    measured: dict[str, dict[int, Metrics]] = {event: {} for event in _MEASURED}
    others: dict[Event, None] = {}
    for event, step, values in events:
        if event in measured:
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
            measured[event][step] = {**measured[event].get(step, {}), **numbers}
        elif event == "alarm":
            kind, text, advice = (str(values.get(key, "")) for key in ("alarm", "found", "advice"))
            others[Event(kind or event, step, text, advice)] = None
        else:
            others[Event(event, step, ", ".join(f"{key} {value}" for key, value in values.items()))] = None
    steps, validations, benchmarks = (dict(sorted(measured[event].items())) for event in _MEASURED)
    return steps, validations, benchmarks, tuple(others)


def flat_settings(config: DictConfig) -> dict[str, object]:
    """A run's config, keys joined by dots; paths below the run folder or the project read as relative to them.

    >>> flat_settings(OmegaConf.create({"paths": {"root_dir": "/a"}, "policy": {"path": "/a/b", "dtype": None}}))
    {'paths.root_dir': '/a', 'policy.path': '<project>/b', 'policy.dtype': None}
    """
    roots = {
        OmegaConf.select(config, "paths.output_dir"): "<run>",
        OmegaConf.select(config, "paths.root_dir"): "<project>",
    }
    flat: dict[str, object] = {}

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
            return
        if isinstance(value, str):
            for root, name in roots.items():
                if root and value.startswith(f"{root}/"):
                    value = name + value[len(root) :]
        flat[prefix] = value

    add("", OmegaConf.to_container(config))
    return flat


def _read_config(path: Path) -> DictConfig:
    try:
        config = load_config(path, expand=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ComparisonError(f"{path}: expected a run's config as YAML, found: {error}") from error
    if not isinstance(config, DictConfig):
        raise ComparisonError(f"{path}: expected a run's config, found a {type(config).__name__}.")
    return config


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    hint = "Remove it to show the run as unfinished."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{path}: expected JSON, found: {error}. {hint}") from error
    if not isinstance(content, dict):
        raise ComparisonError(f"{path}: expected a JSON object, found a {type(content).__name__}. {hint}")
    return content


def _named(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs with the shortest kind of name that tells them apart: method and seed, folder, or more of its path."""
    kinds = [[f"{run.method}-{run.seed}" for run in runs]]
    kinds += [["/".join(run.folder.parts[-n:]) if run.folder else run.name for run in runs] for n in range(1, 9)]
    kinds.append([f"{run.name} ({number})" for number, run in enumerate(runs, start=1)])
    names = next(kind for kind in kinds if len(set(kind)) == len(runs))
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
