"""What is checked before anything is loaded: keys, values, and rules between them. Calls no target.

Hydra refuses a misspelt key on the command line, but takes one behind `+` or in a file of an experiment: there it
would fail late, in the middle of a start, or never, and be ignored. Here the constructor that a `_target_` names says
which keys there are and of which type; where there is none, the file of the config itself does.

Order matters: a missing value is named before a wrong key, a wrong key before a rule that would stumble over it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.result_cache import ResultCache
from src.config.signatures import Accepted, resolved, signature_of
from src.errors import ConfigError, Refusal, advice

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_HYDRAS_OWN = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
COLLECTIONS = ("callbacks", "logger", "benchmark")
"""Groups whose entries have names of their own, each a config with `_target_`, or null."""
_DIFFERENCES = ("experiment", "hparams_search", "debug")
"""Groups of files that hold what differs from the other groups."""
_PLAIN: Mapping[str, Accepted] = {
    "seed": Accepted.of(int),
    "dry_run": Accepted.of(bool),
    "validate_at_start": Accepted.of(bool),
    "task_name": Accepted.of(str),
    "ckpt_path": Accepted.of(str | None),
    "optimized_metric": Accepted.of(str | None),
}


def check_composed(config: DictConfig, primary: str) -> None:
    """Check that a composed config has a value for each key, and no key that nothing reads.

    Args:
        config: composed.
        primary: the file in `configs` that it was composed from.

    Raises:
        ConfigError: a value that is missing, cannot be resolved or has the wrong type, or an unknown key.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise ConfigError(f"no value for {', '.join(missing)}: give them on the command line, e.g. {missing[0]}=…")
        check_keys(config, primary)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error


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
        if plain and key not in (*COLLECTIONS, "hydra") and config.get(key) is not None:
            _check_plain(config[key], key, {str(name) for name in value})
    for key, accepted in _PLAIN.items():
        if key in config:
            _check_value(config[key], key, accepted)
    if isinstance(config.get("paths"), DictConfig):
        _check_plain(config.paths, "paths", _file_keys(CONFIGS / "paths/default.yaml"))
        for key in names_in(config.paths):
            if stands_in(config.paths, key):
                _check_value(config.paths[key], f"paths.{key}", Accepted.of(str | None))
    signatures = ResultCache(cache_file(config, "signatures"))
    try:
        for key in COLLECTIONS:
            if config.get(key) is not None:
                _check_collection(config[key], key, signatures)
        for key in names_in(config):
            if key not in (*COLLECTIONS, "hydra") and not OmegaConf.is_missing(config, key):
                check_nodes(config[key], key, signatures)
    finally:
        signatures.save()  # also where a key is wrong: the corrected command need not wait again


def cache_file(config: DictConfig, name: str) -> Path | None:
    """Where results of a kind are kept between starts; None if the config has no place for them."""
    folder = OmegaConf.select(config, "paths.cache_dir")
    return None if folder is None else Path(folder) / f"{name}.json"


def target_of(node: DictConfig, path: str) -> Any:
    """The class or function that a config names; imports it.

    Raises:
        ConfigError: there is none of that name.
    """
    with _target_errors(node, path):
        return resolved(str(node["_target_"]))


@contextmanager
def _target_errors(node: DictConfig, path: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{path}._target_: expected a class or function that can be imported, found '{node['_target_']}' ({reason})"
        ) from error


def check_nodes(value: Any, path: str, signatures: ResultCache | None = None) -> None:
    """Check the keys and values of every config with `_target_` at or below `path`.

    Args:
        value: at `path`.
        path: for messages.
        signatures: of targets, kept between starts; None: they are read anew.

    Raises:
        ConfigError: names the key.
    """
    signatures = signatures or ResultCache(None)
    if isinstance(value, ListConfig):
        for index, item in enumerate(value):
            check_nodes(item, f"{path}[{index}]", signatures)
    if not isinstance(value, DictConfig):
        return
    if "_target_" in value:
        _check_target(value, path, signatures)
    for key in names_in(value):
        if stands_in(value, key):  # what it refers to is checked where it is
            check_nodes(value[key], f"{path}.{key}", signatures)


def _check_target(node: DictConfig, path: str, signatures: ResultCache) -> None:
    with _target_errors(node, path):
        signature = signature_of(str(node["_target_"]), signatures)
    for key, value in _present(node):
        if key in _HYDRAS_OWN:
            continue
        if key in signature.parameters:
            if value is None and OmegaConf.is_interpolation(node, key):
                continue  # what it refers to is filled in later
            _check_value(value, f"{path}.{key}", signature.parameters[key])
        elif not signature.takes_others:
            known = advice(key, signature.parameters, path + ".")
            raise ConfigError(f"{path}.{key}: no such key; {node['_target_']} does not take it. {known}")


def _check_value(value: Any, path: str, accepted: Accepted) -> None:
    if not accepted.fits(value):
        raise ConfigError(f"{path}: expected {accepted}, found {value!r}.")


def _check_plain(node: Any, path: str, known: Collection[str]) -> None:
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: expected the keys {', '.join(sorted(known))}, found {node!r}.")
    for key in names_in(node):
        if key not in known:
            raise ConfigError(f"{path}.{key}: no such key. {advice(key, known, path + '.')}")


def _check_collection(node: Any, group: str, signatures: ResultCache) -> None:
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
            check_nodes(value, path, signatures)


def _entries(file: Path, group: str) -> set[str]:
    """Names of a group's entries that a file of it has."""
    if _first_line(file).startswith(f"# @package {group}."):
        return {file.stem}
    return _file_keys(file)


def names_in(node: DictConfig) -> list[str]:
    """A section's keys; configs have no others than strings."""
    return [str(key) for key in node]


def stands_in(node: DictConfig, key: str) -> bool:
    """Whether a value stands in the section itself: it is not missing, and refers to no other."""
    return not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)


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


def made(config: DictConfig, key: str, *arguments: Any, **overrides: Any) -> Any:
    """The object of a config at `key`, from further arguments and with keys overridden.

    Raises:
        ConfigError: it refuses its settings; says what it says.
    """
    try:
        return instantiate(config, *arguments, **overrides)
    except InstantiationException as error:
        cause = error.__cause__ or error
        said = str(cause) if isinstance(cause, Refusal) or key in str(cause) else f"{key}: {cause}"
        raise ConfigError(said) from error
