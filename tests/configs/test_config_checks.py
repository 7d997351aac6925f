"""Cross-field rules: one clear error, before anything is loaded, that names the keys."""

from pathlib import Path

import pytest
from transformers import Qwen3Config

from src.utils.config_checks import ConfigError, check_config, check_context
from tests.conftest import train_config


def test_every_default_config_passes():
    check_config(train_config(Path()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.prompts_per_step=10", "updates.prompts_per_minibatch=4"],
            "data.prompts_per_step=10 is no multiple of updates.prompts_per_minibatch=4",
        ),
        (["sampling.n=1"], "sampling.n=1: advantages compare the completions of a prompt"),
        (["sampling.temperature=0"], "sampling.temperature=0 makes all completions of a prompt equal"),
        (
            ["updates.rollout_steps=5", "trainer.val_check_interval=6"],
            "trainer.val_check_interval=6 is more than updates.rollout_steps=5",
        ),
        (
            ["algorithm.weighting.progress=fraction", "callbacks.curriculum=null"],
            "algorithm.weighting.progress=fraction needs callbacks.curriculum",
        ),
        (["data=hammer", "data.train.seed=???"], "no value for data.train.seed"),
    ],
)
def test_rules(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(train_config(Path(), *overrides))


def test_prompt_and_completion_must_fit_the_model():
    config = train_config(Path(), "data.max_prompt_tokens=900", "sampling.max_new_tokens=200")
    check_context(config, Qwen3Config(max_position_embeddings=1100))
    with pytest.raises(ConfigError, match="900 \\+ 200 is more than the model's 1099 positions"):
        check_context(config, Qwen3Config(max_position_embeddings=1099))
