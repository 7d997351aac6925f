"""Checkpoints that read images too: which class is loaded, whole and tensor by tensor, under the checkpoint's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
)

from src.models.loading.architecture import dtype_of, empty_model, model_class
from src.models.loading.cut import draw_weights
from src.models.loading.hub_names import in_hub_names
from src.models.loading.loading import load_model, load_policy
from src.models.loading.lora import LoraSettings, merged_named_tensors
from src.models.loading.policy_config import PolicyConfig
from src.models.loading.weight_source import fill
from src.wings.exporting.folder import export
from tests.architectures.small import small_config
from tests.models.loading.test_loading import assert_same_weights, tokenizer

CLASSES = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""As config.json of their checkpoints names them."""


def config_of(kind: str) -> PretrainedConfig:
    config = small_config(kind)
    config.architectures = [CLASSES[kind]]
    return config


def saved(kind: str, folder: Path) -> PreTrainedModel:
    """A small model of a type, which lies in a folder as its checkpoints do."""
    config = config_of(kind)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    draw_weights(model)
    export(model, tokenizer(), folder)
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_the_class_is_the_one_that_the_checkpoint_names(kind):
    assert type(empty_model(config_of(kind), torch.float32)).__name__ == CLASSES[kind]


def test_the_text_decoder_alone_is_built_where_that_is_what_the_checkpoint_has():
    config = small_config("qwen3_5")
    for name in (None, ["Qwen3_5ForCausalLM"]):
        config.architectures = name
        assert model_class(config) is AutoModelForCausalLM
    assert model_class(config.get_text_config()) is AutoModelForCausalLM
    assert model_class(small_config("mistral3")) is AutoModelForImageTextToText  # there is no other


def test_a_type_that_is_named_for_the_decoder_only_counts():
    config = small_config("qwen3_5")
    config.dtype, config.text_config.dtype = None, torch.bfloat16
    assert dtype_of(config) == torch.bfloat16
    config.text_config.dtype = None
    assert dtype_of(config) == torch.float32


@pytest.mark.parametrize("kind", CLASSES)
def test_a_policy_is_the_same_whole_and_tensor_by_tensor(kind, tmp_path):
    """In files their weights have other names, and those of experts are apart."""
    model = saved(kind, tmp_path)
    if kind != "qwen3_5":
        assert load_file(tmp_path / "model.safetensors").keys() - model.state_dict().keys()
    settings = PolicyConfig(path=tmp_path, dtype="float32")
    assert_same_weights(load_model(settings), model)
    loaded = load_policy(settings, rows="separate", on_meta=True)
    fill(loaded.policy.model, torch.device("cpu"), loaded.weights, "", loaded.policy.model)
    assert_same_weights(loaded.policy.model, model)
    start = dict(loaded.weights.start_of(loaded.policy.model))
    assert all(torch.equal(tensor, start[name]) for name, tensor in loaded.policy.model.named_parameters())


def test_adapters_are_put_on_what_is_read_tensor_by_tensor(tmp_path):
    model = saved("mistral3", tmp_path)
    settings = PolicyConfig(path=tmp_path, dtype="float32", lora=LoraSettings(rank=2, target_modules=("q_proj",)))
    loaded = load_policy(settings, rows="separate", on_meta=True)
    fill(loaded.policy.model, torch.device("cpu"), loaded.weights, "", loaded.policy.model)
    merged = dict(merged_named_tensors(loaded.policy.model))
    assert merged.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["mistral3", "gemma4_unified"])
def test_engines_that_read_checkpoints_get_their_names(kind, tmp_path):
    model = saved(kind, tmp_path)
    stored = load_file(tmp_path / "model.safetensors").keys()
    named = {name for name, _ in in_hub_names(model, merged_named_tensors(model))}
    assert {name for name in named ^ stored if "lm_head" not in name} == set()  # a tied head is in no file


def test_engines_get_the_names_of_the_whole_checkpoint(tmp_path):
    """vLLM builds Qwen3_5ForConditionalGeneration, which knows no `model.layers`; the text decoder alone has those."""
    names = [name for name, _ in merged_named_tensors(saved("qwen3_5", tmp_path))]
    assert all(name.startswith(("model.language_model.", "model.visual.", "lm_head.")) for name in names)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(decoder, Qwen3_5ForCausalLM)
    assert any(name.startswith("model.layers.") for name, _ in merged_named_tensors(decoder))
