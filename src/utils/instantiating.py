"""Groups of Hydra configs to lists of objects."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig


def instantiate_all(config: DictConfig | None, key: str, kind: type) -> list[Any]:
    """Instantiate every entry of a group, in order; an entry that is null is left out.

    Raises:
        ValueError: an entry without `_target_`, or one that makes something other than `kind`.
    """
    made = []
    for name, entry in (config or {}).items():
        key_path = f"{key}.{name!s}"
        if entry is None:
            continue
        if "_target_" not in entry:
            raise ValueError(f"{key_path}: expected a config with _target_, found the keys {sorted(entry)}.")
        value = instantiate(entry)
        if not isinstance(value, kind):
            raise ValueError(f"{key_path}: expected a {kind.__name__}, found {type(value).__name__}.")
        made.append(value)
    return made


def instantiate_callbacks(config: DictConfig | None) -> list[Callback]:
    """The `callbacks` group."""
    return instantiate_all(config, "callbacks", Callback)


def instantiate_loggers(config: DictConfig | None) -> list[Logger]:
    """The `logger` group; several at once are fine."""
    return instantiate_all(config, "logger", Logger)
