"""Small checkpoints in the hub's form, written by transformers, against the models that they are of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from src.models.loading.architecture import empty_model
from src.models.loading.hub_names import in_hub_names
from src.models.loading.lora import LoraSettings, add_lora, merged_named_tensors
from src.models.loading.weight_source import WeightSource, fill
from tests.architectures.small import small_config, small_model
from tests.models.reference import perturb_adapters

MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "glm4_moe", "qwen3_5_moe", "lfm2_moe", "granitemoe")


def in_file(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", [*MIXTURES, "qwen3", "gemma3"])
def test_names_on_the_hub_are_those_of_a_saved_checkpoint(kind: str, tmp_path: Path) -> None:
    model = small_model(small_config(kind))
    expected = in_file(model, tmp_path)
    found = dict(in_hub_names(model, merged_named_tensors(model)))
    if model.config.get_text_config().tie_word_embeddings:
        found = {name: tensor for name, tensor in found.items() if not name.endswith("lm_head.weight")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_experts_of_a_mixture_are_taken_apart() -> None:
    model = small_model(small_config("qwen3_moe"))
    found = dict(in_hub_names(model, merged_named_tensors(model)))
    state = model.state_dict()
    stacked = state["model.layers.1.mlp.experts.gate_up_proj"]  # [experts, 2 x width, hidden]
    width = stacked.shape[1] // 2
    for expert in range(len(stacked)):
        name = f"model.layers.1.mlp.experts.{expert}"
        assert torch.equal(found[f"{name}.gate_proj.weight"], stacked[expert, :width])
        assert torch.equal(found[f"{name}.up_proj.weight"], stacked[expert, width:])


def test_no_more_than_a_layer_is_held() -> None:
    """What is given out of the first layer has been made before the second layer is asked for."""
    model = small_model(small_config("qwen3_moe"))
    asked: list[str] = []

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in merged_named_tensors(model):
            asked.append(name)
            yield name, tensor

    for name, _ in in_hub_names(model, named()):
        if name.startswith("model.layers.0."):
            assert sum(one.startswith("model.layers.1.") for one in asked) <= 1  # the first, by which the layer ends


@pytest.mark.parametrize("kind", [*MIXTURES, "qwen3", "gemma3"])
def test_a_model_without_weights_is_filled_from_the_hubs_form(kind: str, tmp_path: Path) -> None:
    model = small_model(small_config(kind))
    in_file(model, tmp_path)
    empty = empty_model(model.config, torch.float32)
    fill(empty, torch.device("cpu"), WeightSource.of(tmp_path).made_for(empty), "", empty)
    expected = model.state_dict()
    found = empty.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_adapters_are_merged_before_experts_are_taken_apart(tmp_path: Path) -> None:
    model = small_model(small_config("qwen3_moe"))
    names = set(in_file(model, tmp_path))
    add_lora(model, LoraSettings(rank=2, alpha=4))
    perturb_adapters(model)
    assert {name for name, _ in in_hub_names(model, merged_named_tensors(model))} == names
