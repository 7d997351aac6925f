"""Rules that tie several config keys together, and what they say. Reads a composed training config, loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from src.config.checks import check_composed, made, names_in, target_of
from src.config.placement import placement
from src.config.signatures import Accepted
from src.data.sources.base import CorpusSource, check_limits, validation_splits
from src.data.sources.reading import corpus_files, unread
from src.data.sources.rlla import RllaSource
from src.data.sources.synthetic.source import SyntheticSource
from src.environments.tasks import TaskSource, check_reward
from src.errors import ConfigError, advice
from src.rollout.engine import SamplingParams
from src.rollout.vllm.requests import check_mode, check_request, check_size, require_vllm

VALIDATION_METRICS = tuple(
    "reward format name parameter_names parameter_values correctness exact_match tokens truncated with_call".split()
)
_SETTINGS = ("sampling", "updates", "optimizer", "algorithm", "reward", "policy")
"""Made of plain values: their own checks cost nothing."""
_ACTIONS = ("error", "warn", "off")
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
_OF_ROLLOUT_STEPS = ("reward", "train", "response", "entropy", "group")
"""Metrics of rollouts and updates, which a checkpoint may watch too."""


def check_config(config: DictConfig) -> None:
    """Check a composed training config.

    Raises:
        ConfigError: a value is missing, a key is unknown, or a rule does not hold.
    """
    check_composed(config, "train.yaml")
    if config.preflight.action not in _ACTIONS:
        raise ConfigError(f"preflight.action: expected one of {_ACTIONS}, found '{config.preflight.action}'.")
    size = config.preflight.device_gib
    if not Accepted.of(float | None).fits(size) or (size is not None and size <= 0):
        raise ConfigError(f"preflight.device_gib: expected a number above 0 or null, found {size!r}.")
    for rule in RULES:
        rule(config)


def _required(config: DictConfig) -> None:
    """What other rules read."""
    for key in ("train", "max_prompt_tokens", "prompts_per_step"):
        if config.data.get(key) is None:
            raise ConfigError(f"data.{key}: expected a value, found none. Set it, or choose a corpus with data=NAME.")


def _settings(config: DictConfig) -> None:
    """Each section by itself."""
    for section in _SETTINGS:
        made(config[section], section)
    if config.get("warm_start") is not None and config.paths.cache_dir is None:
        raise ConfigError("paths.cache_dir: expected a folder, which keeps the result of warm_start, found null.")
    path = config.policy.get("path")
    if path is not None and not Path(path).is_dir():
        raise ConfigError(f"policy.path: the folder '{path}' does not exist. Set policy.path to a model folder.")


def _minibatches(config: DictConfig) -> None:
    prompts, minibatch = config.data.prompts_per_step, config.updates.prompts_per_minibatch
    if prompts % minibatch:
        raise ConfigError(
            f"data.prompts_per_step={prompts} is no multiple of updates.prompts_per_minibatch={minibatch}: the last "
            "minibatch of every rollout step would be smaller. Change one of them."
        )


def _sampling(config: DictConfig) -> None:
    if not samples(config):
        return
    if config.sampling.n < 2:
        raise ConfigError(
            f"sampling.n={config.sampling.n}: advantages compare the completions of a prompt, so at least 2 are needed."
        )
    if config.sampling.temperature == 0:
        raise ConfigError("sampling.temperature=0 makes all completions of a prompt equal: expected more than 0.")


def _intervals(config: DictConfig) -> None:
    interval, steps = config.trainer.get("val_check_interval"), config.updates.rollout_steps
    if isinstance(interval, int) and interval > steps:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than updates.rollout_steps={steps}: nothing would be "
            "validated on the way. Lower it."
        )
    for name in ("checkpoint", "benchmark", "live_figures"):
        key, field = f"callbacks.{name}.every_n_rollout_steps", "every_n_rollout_steps"
        callback = config.callbacks.get(name)
        if callback is not None and callback.get(field, 1) < 1:
            raise ConfigError(f"{key}: expected at least 1, found {callback[field]}.")


def _callbacks(config: DictConfig) -> None:
    for key, without in (("progress", "step"), ("initialiser", "fixed")):
        value = config.algorithm.weighting.get(key, without)
        if value != without and config.callbacks.get("curriculum") is None:
            raise ConfigError(f"algorithm.weighting.{key}={value} needs callbacks.curriculum, which is null.")
    if config.callbacks.get("live_figures") is not None and config.callbacks.get("metrics_file") is None:
        raise ConfigError(
            "callbacks.live_figures draws what callbacks.metrics_file writes, which is null. Leave it in, or set "
            "callbacks.live_figures=null."
        )
    chosen = [str(name) for name, entry in (config.get("benchmark") or {}).items() if entry is not None]
    if chosen and config.callbacks.get("benchmark") is None:
        raise ConfigError(
            f"benchmark=[{','.join(chosen)}] needs callbacks.benchmark, which is null: none would ever run. Leave "
            "them out (benchmark=[]), or the callback in."
        )


def _devices(config: DictConfig) -> None:
    trainer = config.trainer
    accelerator, precision = str(trainer.get("accelerator", "auto")), str(trainer.get("precision", "32-true"))
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator in ("gpu", "cuda") and not there and not config.get("dry_run"):
        raise ConfigError(
            f"trainer.accelerator={accelerator}: PyTorch finds no CUDA device. Set trainer.accelerator=cpu, or install "
            "a CUDA build of PyTorch."
        )
    try:
        place, on_node = placement(trainer)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"trainer.devices: expected a number, a list or 'auto', found {trainer.devices!r}."
        ) from error
    if place.ranks < 1:
        raise ConfigError(f"trainer.num_nodes: expected at least 1, found {trainer.num_nodes}.")
    if place.cuda and there and on_node > there and not config.get("dry_run"):
        raise ConfigError(f"trainer.devices={trainer.devices}: expected at most the {there} CUDA devices of this node.")
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision={precision}: expected one of {_PRECISIONS}. Weights in bfloat16 are "
            "policy.dtype=bfloat16 with trainer.precision=32-true; float16 and float64 are not trained in."
        )
    if place.ranks > config.data.prompts_per_step:
        raise ConfigError(
            f"data.prompts_per_step={config.data.prompts_per_step}: expected at least one prompt for each of the "
            f"{place.ranks} ranks (trainer.devices x trainer.num_nodes). Raise it, or lower trainer.devices."
        )


def _engine(config: DictConfig) -> None:
    """What vLLM does not take, or would cut short."""
    rollout, name = config.rollout, str(config.rollout.get("_target_", "")).rpartition(".")[2]
    if name not in ("vllm_engine", "VllmServerEngine"):
        return
    if config.updates.old_logprobs == "sampler" and config.algorithm.get("loss", {}).get("importance_cap") is None:
        raise ConfigError(
            "updates.old_logprobs=sampler needs rollout=native, whose log-probabilities are the policy's own; vLLM "
            "computes them otherwise. Set algorithm.loss.importance_cap=2, which makes up for that, or "
            "updates.old_logprobs=auto."
        )
    limit = rollout.get("max_model_len")
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {config.data.max_prompt_tokens} + "
            f"{config.sampling.max_new_tokens} is more than rollout.max_model_len={limit}. Raise it, or lower one of "
            "them."
        )
    params: SamplingParams = made(config.sampling, "sampling")
    try:
        check_mode(rollout.logprobs_mode)
        check_request([], params, [], logprobs_mode=rollout.logprobs_mode, max_model_len=limit or longest)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name == "VllmServerEngine":
        if not str(rollout.url).startswith(("http://", "https://")):
            raise ConfigError(f"rollout.url: expected http://HOST:PORT, found '{rollout.url}'.")
        return
    check_size(rollout.gpu_memory_utilization, rollout.get("max_num_seqs"))
    _, on_node = placement(config.trainer)
    size = rollout.tensor_parallel_size
    if size < 1 or on_node % size:
        raise ConfigError(
            f"rollout.tensor_parallel_size={size}: expected a divisor of the {on_node} ranks of a node "
            "(trainer.devices)."
        )
    if config.get("dry_run"):
        return
    try:
        require_vllm()
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error


def _episodes(config: DictConfig) -> None:
    """An environment goes with what plays its tasks, training or a benchmark; what episodes cannot be trained by."""
    trained = target_of(config.data.train, "data.train") is TaskSource
    played = (config.get("benchmark") or {}).get("episodes")
    for key, node in (("data", config.data.train if trained else None), ("benchmark", played)):
        if node is not None and node.environment is None:
            raise ConfigError(f"{key}=episodes: expected an environment, found none. Set environment=generated, say.")
    if config.environment is not None and not trained and played is None:
        raise ConfigError(
            "environment: expected its tasks as data, found another corpus. Set data=episodes, or benchmark=[episodes] "
            "to evaluate alone."
        )
    if not trained:
        return
    if not samples(config):
        raise ConfigError(
            f"algorithm={config.algorithm.name} with data=episodes: tasks have no targets to imitate. Train on "
            "dialogues (data=messages), or choose a policy gradient."
        )
    check_reward(made(config.environment, "environment"), "data=episodes")
    rows = config.environment.get("rows")
    if (
        rows is not None
        and not (isinstance(rows, DictConfig) and len(rows) > 1)
        and config.optimized_metric is not None
    ):
        raise ConfigError(
            f"environment.rows: expected a file to validate on beside that of train, found {rows}. Set "
            "environment.rows={train:FILE,val:FILE}."
        )
    if config.algorithm.get("regions", "sampled") != "sampled":
        raise ConfigError(
            f"algorithm.regions={config.algorithm.regions} with data=episodes: expected sampled, since a function of "
            "ids does not know where an answer ends. Set it."
        )


def _data(config: DictConfig) -> None:
    """The datamodule's sources and limits, where the corpora lie, and what the metrics of its splits are called."""
    data = config.data
    given = {name: data[name] for name in ("train", "val") if "_target_" in (data.get(name) or {})}
    sources_of = {name: made(node, "data") for name, node in given.items()}
    sources = [found for name, node in given.items() for found in _nodes(node, f"data.{name}")]
    if isinstance(data.get("path"), str) and all(target_of(node, path) is SyntheticSource for path, node in sources):
        raise ConfigError(unread(data.path))
    if config.prompt.get("layout") == "compact":
        for path, node in sources:
            if target_of(node, path) is RllaSource:
                raise ConfigError(
                    f"prompt.layout=compact with {path}: this corpus publishes its prompts verbatim. Set "
                    "prompt.layout=published, and a policy with room for them."
                )
    if not config.get("dry_run"):
        for path, node in sources:
            target = target_of(node, path)
            for key in ("path", "val_path"):
                if isinstance(target, type) and issubclass(target, CorpusSource) and node.get(key) is not None:
                    try:
                        corpus_files(node[key])
                    except (FileNotFoundError, ValueError) as error:
                        said = str(error) if key == "path" else str(error).replace("data.path", "data.val.path")
                        raise ConfigError(f"{path}.{said.replace('path:', f'{key}:', 1)}") from error
    try:
        check_limits(data.max_prompt_tokens, data.get("limit_val"))
        splits = tuple(validation_splits(sources_of["train"], sources_of.get("val"), data.get("val_splits")))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    watched = {"optimized_metric": config.get("optimized_metric")}
    if config.callbacks.get("checkpoint") is not None:
        watched["callbacks.checkpoint.monitor"] = config.callbacks.checkpoint.get("monitor")
    own = getattr(made(config.reward, "reward"), "names", ())
    for key, metric in watched.items():
        if metric is not None and config.trainer.get("limit_val_batches") == 0 and str(metric).startswith(splits):
            raise ConfigError(
                f"{key}={metric} with trainer.limit_val_batches=0: nothing is validated, so it is never measured. Set "
                f"{key}=null."
            )
        if metric is not None:
            _check_metric(key, str(metric), splits, [str(name) for name in config.get("benchmark") or {}], own)


def _check_metric(
    key: str, metric: str, splits: tuple[str, ...], benchmarks: list[str], own: Sequence[str] = ()
) -> None:
    """A name that is never logged would end a run at its first checkpoint, or a sweep after its first run."""
    prefix, _, name = metric.partition("/")
    known = [f"{split}/{value}" for split in splits for value in (*VALIDATION_METRICS, *own)]
    by_tag = prefix in splits and name.startswith("exact_match/")
    in_training = "monitor" in key and prefix in _OF_ROLLOUT_STEPS
    if not (metric in known or by_tag or in_training or prefix in benchmarks):
        raise ConfigError(f"{key}={metric}: no such metric. {advice(metric, known)}")


def samples(config: DictConfig) -> bool:
    """Whether the algorithm is a policy gradient; supervised methods sample for validation only."""
    return "loss" in config.algorithm


def _nodes(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Configs with `_target_` at or below a node."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in names_in(node):
            yield from _nodes(node[key], f"{path}.{key}")


RULES: tuple[Callable[[DictConfig], None], ...] = (
    _required,
    _settings,
    _minibatches,
    _sampling,
    _intervals,
    _callbacks,
    _devices,
    _engine,
    _episodes,
    _data,
)
"""In the order in which they are held."""
