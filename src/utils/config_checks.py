"""Rules that tie several config keys together, checked before anything is loaded."""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

_SMALLEST_BF16_RATE = 1e-4
"""Adam moves a weight by about the learning rate; bfloat16 resolves 4e-5 to 8e-5 around 0.02."""


class ConfigError(ValueError):
    """A config that cannot run as it is: names the keys, what was found, and what to change."""


def check_config(config: DictConfig) -> None:
    """Check a composed training config.

    Raises:
        ConfigError: a value is missing, or a rule does not hold.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"no value for {', '.join(missing)}: give them on the command line, e.g. {missing[0]}=…")
    actions = ("error", "warn", "off")
    if config.preflight.action not in actions:
        raise ConfigError(f"preflight.action: expected one of {actions}, found '{config.preflight.action}'.")
    prompts, minibatch = config.data.prompts_per_step, config.updates.prompts_per_minibatch
    if prompts % minibatch:
        raise ConfigError(
            f"data.prompts_per_step={prompts} is no multiple of updates.prompts_per_minibatch={minibatch}: the last "
            "minibatch of every rollout step would be smaller. Change one of them."
        )
    if "loss" in config.algorithm:  # policy gradients; supervised methods sample for validation only
        _check_sampling(config)
    interval = config.trainer.get("val_check_interval")
    if isinstance(interval, int) and interval > config.updates.rollout_steps:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than updates.rollout_steps={config.updates.rollout_steps}: "
            "nothing would be validated on the way. Lower it."
        )
    scheduled = config.algorithm.weighting.get("progress") == "fraction"
    if scheduled and config.callbacks.get("curriculum") is None:
        raise ConfigError("algorithm.weighting.progress=fraction needs callbacks.curriculum, which is null.")


def _check_sampling(config: DictConfig) -> None:
    if config.sampling.n < 2:
        raise ConfigError(
            f"sampling.n={config.sampling.n}: advantages compare the completions of a prompt, so at least 2 are needed."
        )
    if config.sampling.temperature == 0:
        raise ConfigError("sampling.temperature=0 makes all completions of a prompt equal: expected more than 0.")


def check_model(config: DictConfig, model: PreTrainedModel) -> None:
    """Check the config against the model that it loaded.

    Raises:
        ConfigError: prompt and completion do not fit the model's positions, or updates would be lost in its weights.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    if positions is not None and longest > positions:
        raise ConfigError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {config.data.max_prompt_tokens} + "
            f"{config.sampling.max_new_tokens} is more than the model's {positions} positions. Lower one of them."
        )
    rate = config.optimizer.learning_rate
    if rate < _SMALLEST_BF16_RATE and any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()):
        raise ConfigError(
            f"optimizer.learning_rate={rate} with policy.dtype={config.policy.dtype}: bfloat16 weights keep 8 bits, "
            f"so a step of {rate} on a weight of 0.02 rounds to nothing. Set policy.dtype=float32 "
            "trainer.precision=bf16-mixed, or train adapters with policy.lora."
        )
