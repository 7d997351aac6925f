"""What surrounds Hydra's command line: who may write what a run makes, and the nearest key to a misspelt one."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.config.checks import COLLECTIONS, CONFIGS, names_in, stands_in
from src.data.sources.reading import unread
from src.errors import advice, nearest
from src.runs.folder import keep_to_owner


@contextmanager
def entry_point(primary: str) -> Iterator[None]:
    """Around a `hydra.main`: `GROUP=null` means no option, and a key that Hydra refuses is told with the one meant.

    Args:
        primary: the file in `configs` that is composed.
    """
    keep_to_owner()
    sys.argv[1:] = without_nulls(sys.argv[1:])
    try:
        yield
    except SystemExit as end:
        if end.code == 1:  # Hydra's, of any failure
            for line in unknown_keys(sys.argv[1:], primary):
                sys.stderr.write(line + "\n")
        raise


def without_nulls(arguments: Sequence[str]) -> list[str]:
    """Each `GROUP=null`, which Hydra refuses, as what it takes for no option, or for no entry of several.

    >>> without_nulls(["warm_start=null", "policy/lora=null", "logger=null", "ckpt_path=null", "seed=1"])
    ['~warm_start', '~policy/lora', 'logger=[]', 'ckpt_path=null', 'seed=1']
    """
    written = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        if value == "null" and group and (CONFIGS / group).is_dir():
            argument = f"{group}=[]" if group in COLLECTIONS else f"~{group}"
        written.append(argument)
    return written


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around the import of PyTorch and what builds on it: Python's collector rests, which saves a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def unknown_keys(arguments: Sequence[str], primary: str) -> list[str]:
    """A line for each key of the command line that is not there to be overridden; nothing where Hydra says it all."""
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            config = compose(primary, overrides=[str(one.input_line) for one in overrides if _is_choice(one)])
    except (HydraException, OmegaConfBaseException):
        return []
    lines = []
    for one in overrides:
        key = one.key_or_group
        if not (_is_choice(one) or one.is_add() or one.is_force_add() or one.is_delete() or key.startswith("hydra")):
            found = _problem(config, key)
            lines += [unread(str(one.value()))] if found and key == "data.path" else found
    return lines


def _is_choice(override: Override) -> bool:
    """Whether it chooses a file of a group."""
    group = override.key_or_group.partition("@")[0]
    return (CONFIGS / group).is_dir() and not group.startswith("hydra")


def _problem(config: DictConfig, key: str) -> list[str]:
    """Nothing where the key is there.

    >>> _problem(DictConfig({"updates": {"rollout_steps": 3}, "seed": 1}), "updates.rollout_step")
    ['updates.rollout_step: no such key. Did you mean updates.rollout_steps?']
    >>> _problem(DictConfig({"updates": {"rollout_steps": 3}}), "rollout_steps")
    ['rollout_steps: no such key. Did you mean updates.rollout_steps?']
    """
    node: Any = config
    path = ""
    for part in key.split("."):
        names = names_in(node) if isinstance(node, DictConfig) else []
        if part not in names:
            elsewhere = sorted(other for other in _leaves(config) if other.rpartition(".")[2] == part)
            if elsewhere and nearest(part, names) is None:
                return [f"{key}: no such key. Did you mean {' or '.join(elsewhere[:3])}?"]
            return [f"{key}: no such key. {advice(part, names, path)}"]
        node = node[part] if stands_in(node, part) else None
        path += f"{part}."
        if not isinstance(node, DictConfig):
            break
    return []


def _leaves(node: DictConfig, path: str = "") -> Iterator[str]:
    for key in names_in(node):
        if stands_in(node, key) and isinstance(node[key], DictConfig):
            yield from _leaves(node[key], f"{path}{key}.")
        else:
            yield f"{path}{key}"
