"""Small random models of real architectures: right ones pass, those that a row or the cache computes wrongly do not."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DogeConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    NemotronConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
    StableLmConfig,
)

from src.config.guard import check_engine, check_packed, check_policy_and_engine
from src.errors import ConfigError
from src.models.policy import Policy
from src.rollout.native.engine import NativeEngine
from tests.models.reference import VOCABULARY, tiny_model

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(config: object) -> PreTrainedModel:
    """In float32, with weights large enough to matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.12 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mixtral"])
def test_models_that_are_right_pass_and_nothing_of_them_changes(kind: str) -> None:
    model = random_model(MixtralConfig(**SHAPE)) if kind == "mixtral" else tiny_model(kind)
    policy = Policy(model).train()
    model.model.layers[0].eval()
    modes = [part.training for part in policy.modules()]
    before, drawn = {name: value.clone() for name, value in policy.state_dict().items()}, torch.get_rng_state()

    check_policy_and_engine(policy, NativeEngine(model), 16)

    assert [part.training for part in policy.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (NemotronConfig(**SHAPE), "NemotronAttention cannot run on packed rows: its layers do not pass on the plan"),
        (StableLmConfig(**SHAPE), "StableLmAttention cannot run on packed rows: its layers do not pass on the plan"),
        (DogeConfig(**SHAPE), "DogeAttention cannot run on packed rows: its layers have a mask of their own"),
        (ModernBertDecoderConfig(**SHAPE), "model type 'modernbert-decoder': packed rows give other log-probabilities"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_row_that_is_computed_wrongly_is_refused(config: object, reason: str) -> None:
    policy = Policy(random_model(config))
    with pytest.raises(ConfigError, match=reason):
        check_packed(policy)


@pytest.mark.parametrize(
    "config",
    [
        DiffLlamaConfig(**SHAPE),  # attends twice a layer, and the cache has one place for both
        Qwen3_5TextConfig(**SHAPE, head_dim=16, layer_types=["linear_attention", "full_attention"]),  # keeps a state
    ],
    ids=lambda value: value.model_type,
)
def test_an_engine_that_samples_from_another_distribution_is_refused(config: object) -> None:
    model = random_model(config)
    with pytest.raises(ConfigError, match=r"the rollout engine reports other log-probabilities .* Set rollout=vllm"):
        check_engine(NativeEngine(model), model)
