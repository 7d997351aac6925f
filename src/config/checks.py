"""What is checked before anything is loaded: keys, values, and rules between them.

Order matters: a missing value is named before a wrong key, a wrong key before a rule that would stumble over it.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.keys import check_keys
from src.config.signatures import Accepted
from src.errors import ConfigError

_ACTIONS = ("error", "warn", "off")


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


def check_config(config: DictConfig) -> None:
    """Check a composed training config.

    Raises:
        ConfigError: a value is missing, a key is unknown, or a rule does not hold.
    """
    check_composed(config, "train.yaml")
    from src.config.rules import check_rules  # which imports PyTorch; a misspelt key is named before

    if config.preflight.action not in _ACTIONS:
        raise ConfigError(f"preflight.action: expected one of {_ACTIONS}, found '{config.preflight.action}'.")
    if not Accepted.of(float | None).fits(config.preflight.device_gib):
        raise ConfigError(f"preflight.device_gib: expected a number or null, found {config.preflight.device_gib!r}.")
    check_rules(config)
