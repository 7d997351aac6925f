"""What is checked before anything is loaded: keys, values, rules between them, and the policy's architecture.

Order matters: a missing value is named before a wrong key, a wrong key before a rule that would stumble over it.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.utils.checks import ConfigError
from src.utils.config_keys import check_keys
from src.utils.config_rules import check_rules

__all__ = ["ConfigError", "check_composed", "check_config", "check_lengths", "check_rate"]

_ACTIONS = ("error", "warn", "off")
_SMALLEST_BF16_RATE = 1e-4
"""Adam moves a weight by about the learning rate; bfloat16 resolves 4e-5 to 8e-5 around 0.02."""


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
    if config.preflight.action not in _ACTIONS:
        raise ConfigError(f"preflight.action: expected one of {_ACTIONS}, found '{config.preflight.action}'.")
    check_rules(config)


def check_lengths(config: DictConfig, positions: int | None) -> None:
    """Check that prompts, completions and benchmarks' answers fit a policy's positions.

    Raises:
        ConfigError: names the keys.
    """
    if positions is None:
        return
    prompt, answer = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    if prompt + answer > positions:
        raise ConfigError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {prompt} + {answer} is more than the model's "
            f"{positions} positions. Lower one of them."
        )
    benchmark = config.callbacks.get("benchmark")
    if not config.get("benchmark") or benchmark is None:
        return
    if benchmark.max_new_tokens >= positions:
        raise ConfigError(
            f"callbacks.benchmark.max_new_tokens={benchmark.max_new_tokens} leaves no room for a prompt in the model's "
            f"{positions} positions. Lower it."
        )
    limit = config.rollout.get("max_model_len")
    if limit is not None and limit < positions:
        raise ConfigError(
            f"rollout.max_model_len={limit} is less than the model's {positions} positions, which the prompts of "
            f"benchmark=[{','.join(map(str, config.benchmark))}] may fill: the engine would refuse them in the middle "
            "of the run. Leave rollout.max_model_len null, or benchmarks out (benchmark=[])."
        )


def check_rate(config: DictConfig, stored: torch.dtype) -> None:
    """Check that an update is not lost in the weights' rounding.

    Args:
        config: composed.
        stored: type of the weights that are trained.

    Raises:
        ConfigError: bfloat16 weights with a learning rate below what they resolve.
    """
    rate = config.optimizer.learning_rate
    if rate < _SMALLEST_BF16_RATE and stored == torch.bfloat16:
        raise ConfigError(
            f"optimizer.learning_rate={rate} with policy.dtype={config.policy.dtype}: bfloat16 weights keep 8 bits, "
            f"so a step of {rate} on a weight of 0.02 rounds to nothing. Set policy.dtype=float32 "
            "trainer.precision=bf16-mixed, or train adapters with policy.lora."
        )
