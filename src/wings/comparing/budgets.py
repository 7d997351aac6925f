"""What runs must share to be compared, their budget and start, and in what they differ. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from src.runs.metric_names import VAL_EXACT_MATCH
from src.wings.comparing.run_folders import ComparisonError, RunRecord

_BUDGET = (
    *("data", "policy", "prompt", "sampling", "trainer.precision", "updates", "warm_start"),
    "algorithm.resample_rounds",  # further completions
)
"""Settings that decide budget and start: the same for all runs."""
_FREE_IN_BUDGET = (
    *("data.num_workers", "data.val_batch_size", "updates.max_row_tokens"),
    *(
        "updates.probe_tokens",
        "updates.probe_mean_tolerance",
        "updates.probe_tolerance",
        "updates.zero_advantage",
        "prompt.cache_dir",
        "policy.compile_layers",
        "policy.gradient_checkpointing",
    ),  # older runs do not name these
    *("data.on_bad_record", "data.train.on_bad_record"),
)
_FREE = (
    *("benchmark", "ckpt_path", "logger", "optimized_metric", "paths", "task_name", "trainer", "algorithm.name"),
    *("dry_run", "preflight", "validate_at_start", "callbacks.live_figures"),
    *(f"callbacks.{name}" for name in "benchmark checkpoint health metrics_file progress_bar rollout_log".split()),
    *("rollout.max_sequences", "rollout.max_batch_tokens"),
)
"""How and where a run is executed, not what it computes: not compared, and neither are seeds."""


def check_budgets(runs: Sequence[RunRecord]) -> None:
    """All runs have the same budget and start, and all runs of a method the same settings.

    Raises:
        ComparisonError: a setting differs; names it and two runs.
    """
    firsts: dict[str, RunRecord] = {}
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


def shared_settings(runs: Sequence[RunRecord]) -> dict[str, object]:
    """Compared settings that all runs share; without those that are null, and without the names of classes."""

    def shown(key: str, value: object) -> bool:
        return value is not None and not key.rsplit(".", 1)[-1].startswith("_") and _compared(key)

    first, *others = (run.settings for run in runs)
    return {
        key: value
        for key, value in first.items()
        if shown(key, value) and all(other.get(key) == value for other in others)
    }


def method_settings(runs: Sequence[RunRecord]) -> dict[str, dict[str, object]]:
    """Compared settings that not all runs share, by method."""
    keys = sorted({key for run in runs for key in _keys(runs[0], run)})
    differing = [key for key in keys if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)]
    return {run.method: {key: run.settings.get(key) for key in differing} for run in runs}


def _keys(one: RunRecord, other: RunRecord) -> list[str]:
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


def start_gap(runs: Iterable[RunRecord]) -> Mapping[int, float]:
    """Seed -> how far the exact match of its methods is apart before training: 0 from the same start on one machine.

    Runs with `validate_at_start=false` say nothing about it.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        if run.seed is not None and VAL_EXACT_MATCH in run.validations.get(0, {}):
            values.setdefault(run.seed, []).append(run.validations[0][VAL_EXACT_MATCH])
    return {seed: max(found) - min(found) for seed, found in sorted(values.items())}
