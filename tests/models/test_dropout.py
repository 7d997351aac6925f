"""Dropout is off in every forward unless a policy is asked to keep it, wherever the model has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    OPTConfig,
    PersimmonConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from src.algorithm.packing import pack
from src.models.dropout import dropout_of, switch_off, tell_dropout
from src.models.loading.lora import LoraSettings, add_lora
from src.models.policy import Policy
from tests.models.reference import VOCABULARY, perturb_adapters, random_group, tiny_model

ROW = pack([random_group(7, [5, 1, 9]), random_group(4, [6, 3], seed=1)])


def with_adapters(dropout: float) -> PreTrainedModel:
    model = tiny_model("qwen3")
    add_lora(model, LoraSettings(rank=2, alpha=4, dropout=dropout))
    perturb_adapters(model)
    return model


def gap(policy: Policy) -> float:
    """Largest difference between log-probabilities of an update's forward and of evaluation."""
    updated = policy.train()(ROW).logprobs
    assert updated.requires_grad
    with torch.no_grad():
        return float((updated - policy.eval()(ROW).logprobs).abs().max())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rows", ["packed", "separate"])
@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda: with_adapters(0.1), {"policy.lora.dropout": 0.1}),
        (lambda: tiny_model("llama", attention_dropout=0.2), {"attention_dropout": 0.2}),
    ],
    ids=["lora", "attention"],
)
def test_an_update_sees_the_network_that_samples(
    build: Callable[[], PreTrainedModel],
    found: dict[str, float],
    rows: Literal["packed", "separate"],
    checkpointing: bool,
) -> None:
    whole = Policy(build(), rows=rows, gradient_checkpointing=checkpointing)
    assert whole.dropout == found
    assert gap(whole) < 1e-6
    dropping = Policy(build(), rows=rows, gradient_checkpointing=checkpointing, dropout=True)
    assert dropping.dropout == found
    assert gap(dropping) > 1e-2


def test_gradients_of_recomputed_layers_are_those_of_the_whole_network() -> None:
    gradients = []
    for dropout, checkpointing in ((0.0, False), (0.5, True)):
        policy = Policy(with_adapters(dropout), gradient_checkpointing=checkpointing).train()
        policy(ROW).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        # modules
        (
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64),  # 0.1 each
            {"drop", "attn_dropout", "resid_dropout", "dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"},
        ),
        # numbers of decoder layers
        (
            OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
            {"dropout"},
        ),
        # the config alone
        (
            PersimmonConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            attention_dropout=0.2),
            {"attention_dropout"},
        ),
        (
            FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.2),
            {"hidden_dropout"},
        ),
    ],
    ids=["gpt2", "opt", "persimmon", "falcon"],
)  # fmt: skip
def test_wherever_a_model_keeps_it(config: PretrainedConfig, found: set[str]) -> None:
    config.vocab_size, config.bos_token_id, config.eos_token_id = VOCABULARY, 1, 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    ids = torch.randint(3, VOCABULARY, (1, 20))

    def logits() -> Tensor:
        return model(ids, use_cache=False).logits.detach()

    assert set(dropout_of(model)) == found
    assert not torch.equal(logits(), logits())
    switch_off(model)
    assert dropout_of(model) == {}
    whole = logits()
    torch.testing.assert_close(whole, model.eval()(ids, use_cache=False).logits.detach(), atol=1e-6, rtol=0)


def test_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "src.models.dropout")
    tell_dropout({}, used=True, samples=True)
    tell_dropout({"policy.lora.dropout": 0.1}, used=True, samples=False)  # supervised: there are no ratios
    assert caplog.messages == []
    found = {"policy.lora.dropout": 0.1, "attention_dropout": 0.05}
    tell_dropout(found, used=False, samples=True)
    tell_dropout(found, used=True, samples=True)
    off, on = caplog.messages
    assert "off (policy.lora.dropout=0.1, attention_dropout=0.05)" in off and "policy.dropout=true" in off
    assert "train/sampler_gap" in on and caplog.records[1].levelname == "WARNING"
