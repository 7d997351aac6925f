"""An evaluation: resolve → prepare benchmarks → load → answer and judge → report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.config.checks import check_composed, made
from src.errors import ConfigError
from src.runs.config_file import save_config
from src.runs.folder import held, open_run_folder
from src.runs.summary import command_line, versions
from src.wings.evaluation.answering import GenerationSettings, find_model, start_engine
from src.wings.evaluation.benchmark import Benchmark, EvalReport, Record, Subset, prepared
from src.wings.evaluation.evaluation_folder import RecordStore, model_identity, open_folder, write_whole
from src.wings.evaluation.score_table import render_report

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 30


def evaluate(config: DictConfig) -> dict[str, EvalReport]:
    """Run one evaluation, or go on with it, and return the benchmarks' reports by their names in the config.

    Raises:
        ConfigError: the config cannot run, or is another one than that of the evaluation to resume.
        BenchmarkDataError: the data of a benchmark is not there.
        RecordError: a record of the evaluation to resume is damaged.
        KeyboardInterrupt: interrupted; the folder can be resumed.
    """
    check_composed(config, "eval.yaml")
    started = time.monotonic()
    folder = Path(config.paths.output_dir if config.resume is None else config.resume)
    L.seed_everything(config.seed, workers=True)
    settings: GenerationSettings = instantiate(config.generation)
    wanted = config.subset
    subset = None if wanted is None or wanted.size is None else Subset(wanted.size, wanted.get("seed", 0))
    device, source = find_model(config)
    benchmarks = prepare_benchmarks(config)
    identity = model_identity(source)
    made_of = _fingerprint(config, settings, subset, identity)
    open_folder(folder, made_of, resume=config.resume is not None)
    open_run_folder(folder)
    with held(folder, "hydra.run.dir" if config.resume is None else "resume"):
        stores = {name: RecordStore(folder / f"{name}.jsonl") for name in benchmarks}
        finished = {name: store.read() for name, store in stores.items()}
        save_config(config, folder / "config.yaml")

        generate = start_engine(config, settings, device, source)
        reports: dict[str, EvalReport] = {}
        seconds: dict[str, float] = {}
        try:
            for name, benchmark in benchmarks.items():
                begun, store, done = time.monotonic(), stores[name], finished[name]
                log.info("%s: starting%s.", name, f", {len(done)} samples are finished already" if done else "")
                report = benchmark.run(generate, subset=subset, finished=done, on_record=_writer(name, store))
                store.rewrite(report.records)  # in the benchmark's order
                reports[name] = report
                seconds[name] = round(time.monotonic() - begun, 1)
        except KeyboardInterrupt:
            again = command_line() if config.resume is not None else command_line(f"resume={folder}")
            log.warning("Interrupted. Finished samples are kept; to go on: %s", again)
            raise

        model_name = config.model_name or source.name
        tables = render_report(model_name, reports, subset=subset, reference_rows=config.reference_rows)
        content = {
            "model": {
                "name": model_name,
                "kind": source.kind,
                "checkpoint": source.checkpoint,
                "policy": asdict(source.policy),
                "identity": identity,
            },
            "prompt": OmegaConf.to_container(config.prompt),
            "generation": {
                **asdict(settings),
                "max_new_tokens": generate.params.max_new_tokens,
                "context": generate.context,
            },
            "device": str(device),
            "seed": config.seed,
            "subset": None if subset is None else asdict(subset),
            "benchmarks": {
                name: {
                    "settings": OmegaConf.to_container(config.benchmark[name], resolve=True),
                    "scores": dict(report.scores),
                    "counts": dict(report.counts),
                    "seconds": seconds[name],
                    "resumed_samples": len(finished[name]),
                }
                for name, report in reports.items()
            },
            "seconds": round(time.monotonic() - started, 1),
            "command": command_line(),
            "versions": versions(),
        }
        write_whole(folder / "report.json", json.dumps(content, indent=2, default=str) + "\n")
        write_whole(folder / "report.md", tables)
        log.info("Results of %s\n\n%s", model_name, tables)
        log.info("Evaluation folder: %s", folder)
        return reports


def prepare_benchmarks(config: DictConfig) -> dict[str, Benchmark]:
    """The chosen benchmarks by name, their data read; those that lack it and say `on_missing: skip` are left out.

    Raises:
        ConfigError: none was chosen, or none is left.
        BenchmarkDataError: data is missing.
    """
    given = {str(name): entry for name, entry in (config.benchmark or {}).items() if entry is not None}
    chosen = {name: made(entry, f"benchmark.{name}") for name, entry in given.items()}
    if not chosen:
        group = Path(config.paths.root_dir) / "configs" / "benchmark"
        known = ",".join(sorted(path.stem for path in group.glob("*.yaml")))
        raise ConfigError(f"benchmark: expected at least one, found none. E.g. benchmark=[{known}]")
    ready = prepared(chosen.values())
    if not ready:
        raise ConfigError(f"benchmark: no data for any of {sorted(chosen)}, and on_missing=skip leaves them all out.")
    return {name: benchmark for name, benchmark in chosen.items() if benchmark in ready}


def _writer(name: str, store: RecordStore) -> Callable[[Record], None]:
    """Writes records and tells now and then how far it is."""
    count, passed, told = 0, 0, time.monotonic()

    def write(record: Record) -> None:
        nonlocal count, passed, told
        store.append(record)
        count, passed = count + 1, passed + record.passed
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: %d samples answered, %.1f%% of them passed.", name, count, 100 * passed / count)

    return write


def _fingerprint(
    config: DictConfig, settings: GenerationSettings, subset: Subset | None, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What the records depend on; how many prompts run at once is left free."""
    return {
        "model": dict(identity),
        "prompt": OmegaConf.to_container(config.prompt),
        "benchmark": OmegaConf.to_container(config.benchmark, resolve=True),
        "generation": {key: value for key, value in asdict(settings).items() if key != "batch_size"},
        "subset": None if subset is None else asdict(subset),
        "engine": config.rollout["_target_"],
        "seed": config.seed,
    }
