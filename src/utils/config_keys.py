"""Every key of a composed config against what reads it, before anything is loaded. Imports targets, calls none.

Hydra refuses a misspelt key on the command line, but takes one behind `+` or in a file of an experiment: there it
would fail late, in the middle of a start, or never, and be ignored. Here the constructor that a `_target_` names says
which keys there are and of which type; where there is none, the file of the config itself does.
"""

from __future__ import annotations

import inspect
import pkgutil
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.utils.checks import ConfigError, advice
from src.utils.config_types import describe, fits

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_HYDRAS_OWN = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_COLLECTIONS = ("callbacks", "logger", "benchmark")
"""Groups whose entries have names of their own, each a config with `_target_`, or null."""
_DIFFERENCES = ("experiment", "hparams_search", "debug")
"""Groups of files that hold what differs from the other groups."""
_PLAIN: Mapping[str, Any] = {
    "seed": int,
    "dry_run": bool,
    "validate_at_start": bool,
    "task_name": str,
    "ckpt_path": str | None,
    "optimized_metric": str | None,
}


def check_keys(config: DictConfig, primary: str) -> None:
    """Refuse unknown keys and values of the wrong type.

    Args:
        config: composed, with or without Hydra's own node.
        primary: the file in `configs` that it was composed from, e.g. `train.yaml`.

    Raises:
        ConfigError: names the key and the nearest valid one, or what its value should be.
    """
    file = CONFIGS / primary
    groups = _groups(file)
    known = {*_file_keys(file), *groups, *_set_by_groups(groups), "hydra"}
    for key in names_in(config):
        if key not in known:
            raise ConfigError(f"{key}: no such key in configs/{primary}. {advice(key, known)}")
    for key, value in _present(cast(DictConfig, OmegaConf.load(file))):
        plain = isinstance(value, DictConfig) and value and "_target_" not in value
        if plain and key not in (*_COLLECTIONS, "hydra") and config.get(key) is not None:
            _check_plain(config[key], key, {str(name) for name in value})
    for key, hint in _PLAIN.items():
        if key in config:
            _check_value(config[key], key, hint)
    if isinstance(config.get("paths"), DictConfig):
        _check_plain(config.paths, "paths", _file_keys(CONFIGS / "paths/default.yaml"))
    for key in _COLLECTIONS:
        if config.get(key) is not None:
            _check_collection(config[key], key)
    for key in names_in(config):
        if key not in (*_COLLECTIONS, "hydra") and not OmegaConf.is_missing(config, key):
            check_nodes(config[key], key)


def target_of(node: DictConfig, path: str) -> Any:
    """The class or function that a config names.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return pkgutil.resolve_name(str(node["_target_"]))
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}._target_: expected a class or function that can be imported, found '{node['_target_']}' ({reason})"
        ) from error


def parameters_of(target: Any) -> tuple[dict[str, Any], bool]:
    """Names of a target's keyword parameters with their type hints, and whether it takes others as well.

    What a class of this project hands on with `**` goes to the next constructor of its bases.
    """
    found: dict[str, Any] = {}
    chain = (
        [c.__dict__["__init__"] for c in target.__mro__ if "__init__" in c.__dict__] if inspect.isclass(target) else []
    )
    for function in chain or [target]:
        hints = _hints(function)
        handed_on = False
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                handed_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
                found.setdefault(name, hints.get(name, Any))
        if not handed_on:
            return found, False
        if not str(getattr(function, "__module__", "")).startswith("src."):
            return found, True  # another package's: it may take them anywhere
    return found, True


def _hints(function: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # hints that only a type checker can read
        return {}


def check_nodes(value: Any, path: str) -> None:
    """Check the keys and values of every config with `_target_` at or below `path`.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(value, ListConfig):
        for index, item in enumerate(value):
            check_nodes(item, f"{path}[{index}]")
    if not isinstance(value, DictConfig):
        return
    if "_target_" in value:
        _check_target(value, path)
    for key in names_in(value):
        if not OmegaConf.is_missing(value, key) and not OmegaConf.is_interpolation(value, key):  # checked where it is
            check_nodes(value[key], f"{path}.{key}")


def _check_target(node: DictConfig, path: str) -> None:
    parameters, takes_others = parameters_of(target_of(node, path))
    for key, value in _present(node):
        if key in _HYDRAS_OWN:
            continue
        if key in parameters:
            if value is None and OmegaConf.is_interpolation(node, key):
                continue  # what it refers to is filled in later
            _check_value(value, f"{path}.{key}", parameters[key])
        elif not takes_others:
            raise ConfigError(
                f"{path}.{key}: no such key; {node['_target_']} does not take it. {advice(key, parameters, path + '.')}"
            )


def _check_value(value: Any, path: str, hint: Any) -> None:
    if not fits(value, hint):
        raise ConfigError(f"{path}: expected {describe(hint)}, found {value!r}.")


def _check_plain(node: Any, path: str, known: Collection[str]) -> None:
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: expected the keys {', '.join(sorted(known))}, found {node!r}.")
    for key in names_in(node):
        if key not in known:
            raise ConfigError(f"{path}.{key}: no such key. {advice(key, known, path + '.')}")


def _check_collection(node: Any, group: str) -> None:
    """Entries that are no config: one that a misspelt name of a file's entry has made."""
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{group}: expected names of configs/{group}, found {node!r}.")
    known = set().union(*(_entries(file, group) for file in sorted((CONFIGS / group).glob("*.yaml"))))
    for key, value in _present(node):
        path = f"{group}.{key}"
        if value is None:
            if key not in known:
                raise ConfigError(f"{path}: null leaves an entry out, but none is called so. {advice(key, known)}")
        elif not isinstance(value, DictConfig) or "_target_" not in value:
            found = f"the keys {sorted(map(str, value))}" if isinstance(value, DictConfig) else repr(value)
            raise ConfigError(f"{path}: expected a config with _target_, found {found}. {advice(key, known)}")
        else:
            check_nodes(value, path)


def _entries(file: Path, group: str) -> set[str]:
    """Names of a group's entries that a file of it has."""
    if _first_line(file).startswith(f"# @package {group}."):
        return {file.stem}
    return _file_keys(file)


def names_in(node: DictConfig) -> list[str]:
    """A section's keys; configs have no others than strings."""
    return [str(key) for key in node]


def _file_keys(file: Path) -> set[str]:
    return {str(key) for key in OmegaConf.load(file) if key != "defaults"}


def _groups(file: Path) -> set[str]:
    """Groups that a file's defaults list names."""
    names: set[str] = set()
    for entry in cast(DictConfig, OmegaConf.load(file)).get("defaults", []):
        if isinstance(entry, DictConfig):
            names |= {str(key).removeprefix("optional ").removeprefix("override ") for key in entry}
    return {name.partition("@")[0].strip("/").partition("/")[0] for name in names}


def _set_by_groups(groups: Collection[str]) -> set[str]:
    """Keys outside of their group that files of groups set; those that hold a run's differences decide on nothing."""
    files = (file for group in groups if group not in _DIFFERENCES for file in (CONFIGS / group).glob("*.yaml"))
    return {key for file in files if "@package _global_" in _first_line(file) for key in _file_keys(file)}


def _first_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0]


def _present(node: DictConfig) -> Iterator[tuple[str, Any]]:
    """Entries that have a value; missing ones (`???`) are named elsewhere."""
    for key in node:
        if not OmegaConf.is_missing(node, str(key)):
            yield str(key), node[key]
