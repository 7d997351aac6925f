"""Groups of Hydra configs to lists of objects; loggers that need a server are connected, or go on without it."""

from __future__ import annotations

import logging
from typing import Any

from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from src.config.checks import made

log = logging.getLogger(__name__)


def instantiate_all(config: DictConfig | None, key: str, kind: type) -> dict[str, Any]:
    """Instantiate every entry of a group, in order; an entry that is null is left out.

    Raises:
        ConfigError: an entry refuses its settings.
        ValueError: an entry without `_target_`, or one that makes something other than `kind`.
    """
    found = {}
    for name, entry in (config or {}).items():
        key_path = f"{key}.{name!s}"
        if entry is None:
            continue
        if "_target_" not in entry:
            raise ValueError(f"{key_path}: expected a config with _target_, found the keys {sorted(entry)}.")
        value = made(entry, key_path)
        if not isinstance(value, kind):
            raise ValueError(f"{key_path}: expected a {kind.__name__}, found {type(value).__name__}.")
        found[str(name)] = value
    return found


def instantiate_callbacks(config: DictConfig | None) -> list[Callback]:
    """The `callbacks` group."""
    return list(instantiate_all(config, "callbacks", Callback).values())


def instantiate_loggers(config: DictConfig | None) -> list[Logger]:
    """The `logger` group; several at once are fine.

    W&B is connected here, before training, rather than at the first number. Where that fails, its curves are written to
    the run folder for `wandb sync`, and one warning says why.
    """
    loggers = instantiate_all(config, "logger", Logger)
    if config is not None and getattr(rank_zero_only, "rank", 0) == 0:
        for name, logger in loggers.items():
            if isinstance(logger, WandbLogger):
                loggers[name] = _connected(logger, config[name], name)
    return list(loggers.values())


def _connected(logger: WandbLogger, config: DictConfig, name: str) -> WandbLogger:
    """The logger, or one that is offline."""
    from wandb.errors import Error as WandbError

    try:
        _ = logger.experiment
    except WandbError as error:
        reason = str(error).strip().splitlines()[0]
        log.warning(
            "logger.%s: W&B cannot be used (%s). Going on offline: to send the curves later, `wandb sync` the folder "
            "wandb/offline-run-… in the run folder. Check WANDB_API_KEY and the connection, or set "
            "logger.%s.offline=true.",
            name,
            reason,
            name,
        )
        logger = instantiate(config, offline=True, log_model=False, mode="offline")  # W&B reads WANDB_MODE but once
        _ = logger.experiment
    return logger
