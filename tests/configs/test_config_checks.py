"""Cross-field rules: one clear error, before anything is loaded, that names the keys."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from src.utils.config_checks import ConfigError, check_config, check_model
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


def qwen3(positions: int, dtype: torch.dtype) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8
    )
    config.max_position_embeddings = positions
    return Qwen3ForCausalLM(config).to(dtype)


def test_prompt_and_completion_must_fit_the_model():
    config = train_config(Path(), "data.max_prompt_tokens=900", "sampling.max_new_tokens=200")
    check_model(config, qwen3(1100, torch.float32))
    with pytest.raises(ConfigError, match="900 \\+ 200 is more than the model's 1099 positions"):
        check_model(config, qwen3(1099, torch.float32))


def test_updates_must_not_be_lost_in_bfloat16():
    """0.02 + 1e-6 is 0.02 in bfloat16: the published learning rate would train nothing."""
    assert torch.tensor(0.02, dtype=torch.bfloat16) + 1e-6 == torch.tensor(0.02, dtype=torch.bfloat16)
    config = train_config(Path(), "optimizer.learning_rate=1.0e-6", "policy.dtype=bfloat16")
    check_model(config, qwen3(1024, torch.float32))
    with pytest.raises(ConfigError, match=r"policy\.dtype=float32 trainer.precision=bf16-mixed"):
        check_model(config, qwen3(1024, torch.bfloat16))
    check_model(train_config(Path(), "optimizer.learning_rate=1.0e-4"), qwen3(1024, torch.bfloat16))
