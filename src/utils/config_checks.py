"""Rules that tie several config keys together, checked before anything is loaded."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


class ConfigError(ValueError):
    """A config that cannot run as it is: names the keys, what was found, and what to change."""


def check_config(config: DictConfig) -> None:
    """Check a composed training config.

    Raises:
        ConfigError: a value is missing, or a rule does not hold.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"no value for {', '.join(missing)}: give them on the command line, e.g. {missing[0]}=…")
    prompts, minibatch = config.data.prompts_per_step, config.update.prompts_per_minibatch
    if prompts % minibatch:
        raise ConfigError(
            f"data.prompts_per_step={prompts} is no multiple of update.prompts_per_minibatch={minibatch}: the last "
            "minibatch of every rollout step would be smaller. Change one of them."
        )
    if config.sampling.n < 2:
        raise ConfigError(
            f"sampling.n={config.sampling.n}: advantages compare the completions of a prompt, so at least 2 are needed."
        )
    if config.sampling.temperature == 0:
        raise ConfigError("sampling.temperature=0 makes all completions of a prompt equal: expected more than 0.")
    context = config.policy.get("max_context")
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    if context is not None and longest > context:
        raise ConfigError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} is more than policy.max_context={context}. "
            "Lower one of the first two."
        )
    interval = config.trainer.get("val_check_interval")
    if isinstance(interval, int) and interval > config.update.rollout_steps:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than update.rollout_steps={config.update.rollout_steps}: "
            "nothing would be validated on the way. Lower it."
        )
    scheduled = config.algorithm.weighting.progress == "fraction"
    if scheduled and config.callbacks.get("curriculum") is None:
        raise ConfigError("algorithm.weighting.progress=fraction needs callbacks.curriculum, which is null.")
