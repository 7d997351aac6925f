"""What an evaluation's `model=…` or `policy=…` stands for, and its weights: reads run folders, changes nothing.

A run folder brings its policy and its prompt in `config.yaml`; the weights come from a checkpoint in it and replace all
of the base model's. A folder that was exported here brings its prompt in `prompt.json`. Another model folder, or a hub
id, is taken as it is.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.checks import made
from src.errors import ConfigError
from src.models.checkpoints.reading import is_sharded, load_checkpoint
from src.models.loading.loading import load_model, load_tokenizer, stop_token_ids
from src.models.loading.policy_config import PolicyConfig
from src.runs.config_file import load_config

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_PROMPT = ("layout", "format", "chat_template_kwargs")
"""What a run's prompt config says of how its policy is to be asked."""

PROMPT_FILE = "prompt.json"
"""The same, in an exported folder."""


def asked(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a prompt config that a model must be asked with."""
    return {key: value for key, value in prompt.items() if key in _PROMPT}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        name: for tables and logs.
        kind: where it comes from.
        policy: how it is loaded.
        prompt: settings of the prompt that it was trained with, as far as they are known.
        checkpoint: of a run; its weights replace those that `policy` names.
    """

    name: str
    kind: Literal["policy", "folder", "hub", "run"]
    policy: PolicyConfig
    prompt: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None


class LoadedModel(NamedTuple):
    """A model in evaluation mode with what generation needs to know about it; see `LoadedPolicy`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]


def resolve_model(config: DictConfig) -> ModelSource:
    """Find what the keys `model`, `policy`, `checkpoint`, `base_path`, `dtype` and `policy_options` mean together.

    Args:
        config: an evaluation's config; `paths` tells this machine's folders.

    Raises:
        ConfigError: not exactly one of `model` and `policy`, a model that is not there or is no model, or a run's
            config that does not fit this machine or this version.
    """
    named = config.get("policy")
    if (config.model is None) == (named is None):
        found = "neither" if named is None else f"both (model={config.model})"
        raise ConfigError(
            f"model, policy: expected exactly one of them, found {found}. model=… takes a run folder, a checkpoint, a "
            "model folder or a hub id; policy=… a name in configs/policy, e.g. policy=tiny."
        )
    if named is not None:
        policy = _policy(named, "policy", **_overrides(config))
        return ModelSource(_policy_name(policy), "policy", policy)
    path = Path(config.model).expanduser()
    if path.is_dir() and _is_model_folder(path, config.policy_options.gguf_file):
        policy = _policy(config.policy_options, "policy_options", path=str(path), **_overrides(config))
        written = path / PROMPT_FILE
        prompt = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
        return ModelSource(path.resolve().name, "folder", policy, prompt)
    if path.is_dir() and (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return _from_run(path, find_checkpoint(path, str(config.checkpoint)), config)
    sharded = is_sharded(path)
    if path.is_dir() and not sharded:
        raise ConfigError(
            f"model='{path}': expected a run folder (config.yaml and checkpoints/) or a model folder (config.json), "
            f"found a folder with {_listing(path)}."
        )
    if path.is_file() or sharded:
        runs = [folder for folder in path.resolve().parents if (folder / "config.yaml").is_file()]
        if not runs:
            raise ConfigError(
                f"model='{path}': expected a checkpoint inside its run folder, found no config.yaml in the folders "
                "above it. The config says what the checkpoint's weights belong to: put it back beside checkpoints/."
            )
        return _from_run(runs[0], path, config)
    if _HUB_ID.fullmatch(str(config.model)) and not path.parent.exists():
        policy = _policy(config.policy_options, "policy_options", hub_id=str(config.model), **_overrides(config))
        return ModelSource(str(config.model), "hub", policy)
    raise ConfigError(
        f"model='{config.model}': expected a run folder, a checkpoint, a model folder or a hub id (owner/name), found "
        "no such file or folder."
    )


def find_checkpoint(run: Path, wanted: str) -> Path:
    """The checkpoint of a run, a file or a folder of shards: `best`, `last` or its name; without a best one, the last.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    folder = run / "checkpoints"
    for name in (wanted, f"{wanted}.ckpt"):
        if (folder / name).is_file() or is_sharded(folder / name):
            return folder / name
    if wanted == "best" and (folder / "last.ckpt").exists():
        log.warning("checkpoint=best: '%s' has no best.ckpt (no validation yet?), so last.ckpt is taken.", folder)
        return find_checkpoint(run, "last")
    raise ConfigError(f"checkpoint={wanted}: expected it in '{folder}', found {_listing(folder)}.")


def load_source(source: ModelSource) -> LoadedModel:
    """Load model and tokenizer on the CPU, the checkpoint's weights included.

    Raises:
        FileNotFoundError, OSError, ValueError: see `load_policy` and `load_checkpoint`.
    """
    tokenizer = load_tokenizer(source.policy)
    model = load_model(source.policy)
    if source.checkpoint is not None:
        load_checkpoint(model, source.checkpoint)
    return LoadedModel(
        model.eval(), tokenizer, stop_token_ids(model, tokenizer, source.prompt.get("chat_template_kwargs"))
    )


def run_config(checkpoint: Path) -> dict[str, Any]:
    """The composed config of the run that a checkpoint lies in, as plain values.

    Raises:
        ConfigError: there is none, or one that is not of a training run.
    """
    file = next((folder / "config.yaml" for folder in checkpoint.parents if (folder / "config.yaml").is_file()), None)
    if file is None:
        raise ConfigError(f"checkpoint '{checkpoint}': expected config.yaml in a folder above it, found none.")
    return _plain(_saved_config(file))


def _saved_config(file: Path) -> DictConfig:
    try:
        saved = load_config(file)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"'{file}' cannot be read: {error}") from error
    if not isinstance(saved, DictConfig) or saved.get("policy") is None or saved.get("prompt") is None:
        raise ConfigError(f"'{file}': expected the keys 'policy' and 'prompt' of a training run, found not both.")
    return saved


def _from_run(run: Path, checkpoint: Path, config: DictConfig) -> ModelSource:
    """Policy and prompt as the run had them."""
    file = run / "config.yaml"
    saved = _saved_config(file)
    overrides = {**_overrides(config), "cache_dir": config.paths.cache_dir}
    overrides |= {"gradient_checkpointing": False, "compile_layers": False}
    if config.base_path is not None:
        overrides["path"] = str(Path(config.base_path).expanduser())
    elif saved.policy.get("path") is not None:
        overrides["path"] = str(_relocated(saved, file, Path(config.paths.root_dir)))
    policy = _policy(saved.policy, f"policy in '{file}'", **overrides)
    prompt = asked(_plain(saved.prompt))
    return ModelSource(f"{run.resolve().name} ({checkpoint.stem})", "run", policy, prompt, checkpoint)


def _relocated(saved: DictConfig, file: Path, root: Path) -> Path:
    """The run's base model on this machine: where it was, or at the same place below this checkout."""
    path = Path(saved.policy.path)
    tried = [path] if path.is_absolute() else [path, root / path]
    trained_in = OmegaConf.select(saved, "paths.root_dir")
    if trained_in is not None and path.is_relative_to(trained_in):
        tried.append(root / path.relative_to(trained_in))
    for candidate in tried:
        if candidate.is_dir():
            return candidate
    places = ", ".join(f"'{place}'" for place in dict.fromkeys(tried))
    raise ConfigError(
        f"policy.path in '{file}': the folder of the run's base model is not at {places}. Its config and tokenizer are "
        "needed beside the checkpoint: base_path=FOLDER says where they are now."
    )


def _policy(config: DictConfig, where: str, **overrides: Any) -> PolicyConfig:
    try:
        policy = made(config, where, **overrides)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(policy, PolicyConfig):
        raise ConfigError(f"{where}: expected _target_ to make a PolicyConfig, found {type(policy).__name__}.")
    return policy


def _overrides(config: DictConfig) -> dict[str, Any]:
    return {} if config.dtype is None else {"dtype": config.dtype}


def _policy_name(policy: PolicyConfig) -> str:
    if policy.path is not None:
        return Path(policy.path).name
    return str(policy.hub_id) if policy.gguf_file is None else Path(policy.gguf_file).stem


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _is_model_folder(path: Path, gguf_file: str | None) -> bool:
    return (path / "config.json").is_file() or (gguf_file is not None and (path / gguf_file).is_file())


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "nothing"
