"""Run folders read back for comparisons and reports, and the check that budgets are one. Reads files, writes none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from src.wings.comparing.comparison import ComparisonError, Run

_FILES = ("config.yaml", "metrics.jsonl", "summary.json")
_BUDGET = (
    *("data", "policy", "prompt", "sampling", "trainer.precision", "updates", "warm_start"),
    "algorithm.resample_rounds",  # further completions
)
"""Settings that decide budget and start: the same for all runs."""
_FREE_IN_BUDGET = (
    *("data.num_workers", "data.val_batch_size", "updates.max_row_tokens"),
    *("updates.probe_tokens", "updates.probe_tolerance"),  # older runs do not name them
)
_FREE = (
    *("benchmark", "ckpt_path", "logger", "optimized_metric", "paths", "task_name", "trainer", "algorithm.name"),
    *("dry_run", "preflight", "validate_at_start", "callbacks.live_figures"),
    *(f"callbacks.{name}" for name in "benchmark checkpoint health metrics_file progress_bar rollout_log".split()),
    *("rollout.max_sequences", "rollout.max_batch_tokens"),
)
"""How and where a run is executed, not what it computes: not compared, and neither are seeds."""


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


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        ComparisonError: `algorithm.name` is missing, a line is no event, or there is not one line for every rollout
            step and a validation after the last.
    """
    config = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
    method, seed = OmegaConf.select(config, "algorithm.name"), OmegaConf.select(config, "seed")
    if not isinstance(method, str) or not isinstance(seed, int):
        raise ComparisonError(
            f"{folder / 'config.yaml'}: expected algorithm.name and seed, found {method!r} and {seed!r}. Add "
            "`name: METHOD` to its file in configs/algorithm."
        )
    events = read_events(folder / "metrics.jsonl")
    steps = [values for event, _, values in events if event == "rollout_step"]
    indices = [step for event, step, _ in events if event == "rollout_step"]
    expected = int(OmegaConf.select(config, "updates.rollout_steps"))
    if indices != list(range(expected)):
        raise ComparisonError(
            f"{folder / 'metrics.jsonl'}: expected the rollout steps 0 to {expected - 1} once each, found {indices}. A "
            "run that was stopped and started again in its folder has some of them twice: run it anew."
        )
    validations = {step: values for event, step, values in events if event == "validation"}
    if expected not in validations:
        raise ComparisonError(
            f"{folder / 'metrics.jsonl'}: expected a validation at rollout step {expected}, found one at "
            f"{sorted(validations)}."
        )
    start = validations.get(0, {})  # none with validate_at_start=false
    return Run(method, seed, folder.name, flat_settings(config), start=start, final=validations[expected], steps=steps)


def read_events(path: Path, *, growing: bool = False) -> list[tuple[str, int, dict[str, Any]]]:
    """(event, rollout step, values) of each line of a `metrics.jsonl`. Values are numbers, those of alarms texts too.

    Args:
        path: the file.
        growing: its run may be at work: a last line without its line break is left out.

    Raises:
        ComparisonError: a line is no event.
    """
    events = []
    content = path.read_bytes()
    if growing:
        content = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values: Any = json.loads(line)
            events.append((str(values.pop("event")), int(values.pop("rollout_step")), values))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ComparisonError(
                f"{path}, line {number}: expected a JSON object with event and rollout_step, found {line[:80]!r}."
            ) from error
    return events


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


def check_budgets(runs: Sequence[Run]) -> None:
    """All runs have the same budget and start, and all runs of a method the same settings.

    Raises:
        ComparisonError: a setting differs; names it and two runs.
    """
    firsts: dict[str, Run] = {}
    for run in runs:
        for other, keys in (
            (runs[0], [key for key in _keys(runs[0], run) if _within(key, _BUDGET)]),
            (firsts.setdefault(run.method, run), _keys(firsts[run.method], run)),
        ):
            for key in keys:
                if other.settings.get(key) != run.settings.get(key):
                    what = "all runs" if _within(key, _BUDGET) else f"all runs of {run.method}"
                    raise ComparisonError(
                        f"{key}: expected the same for {what}, found {other.settings.get(key)!r} in {other.name} and "
                        f"{run.settings.get(key)!r} in {run.name}."
                    )


def shared_settings(runs: Sequence[Run]) -> dict[str, object]:
    """Compared settings that all runs share; without those that are null, and without the names of classes."""

    def shown(key: str, value: object) -> bool:
        return value is not None and not key.rsplit(".", 1)[-1].startswith("_") and _compared(key)

    first, *others = (run.settings for run in runs)
    return {
        key: value
        for key, value in first.items()
        if shown(key, value) and all(other.get(key) == value for other in others)
    }


def method_settings(runs: Sequence[Run]) -> dict[str, dict[str, object]]:
    """Compared settings that not all runs share, by method."""
    keys = sorted({key for run in runs for key in _keys(runs[0], run)})
    differing = [key for key in keys if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)]
    return {run.method: {key: run.settings.get(key) for key in differing} for run in runs}


def _keys(one: Run, other: Run) -> list[str]:
    return sorted(key for key in {*one.settings, *other.settings} if _compared(key))


def _compared(key: str) -> bool:
    if key.rsplit(".", 1)[-1] == "seed":
        return False
    return not _within(key, _FREE_IN_BUDGET) and (_within(key, _BUDGET) or not _within(key, _FREE))


def _within(key: str, sections: Iterable[str]) -> bool:
    """Whether a key is one of these or below one.

    >>> _within("data.train.num_val", ["data"]), _within("database", ["data"])
    (True, False)
    """
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def start_gap(runs: Iterable[Run], key: str) -> Mapping[int, float]:
    """Seed -> how far its methods are apart before the first rollout step: 0 from the same start on one machine.

    Runs with `validate_at_start=false` say nothing about it.
    """
    values: dict[int, list[float]] = {}
    for run in (run for run in runs if run.start):
        values.setdefault(run.seed, []).append(run.validation("start", key))
    return {seed: max(found) - min(found) for seed, found in sorted(values.items())}
