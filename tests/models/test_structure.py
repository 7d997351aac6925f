"""Decoders, layers and heads of small models, and what their configs say of their logits."""

from __future__ import annotations

import pytest
import torch

from src.errors import ConfigError
from src.models.head.head import LogitMap
from src.models.structure import decoder_of, head_of, layers_of, logit_map_of, own_attention
from tests.architectures.small import small_config, small_model


@pytest.mark.parametrize(
    ("kind", "decoder", "layers"),
    [
        ("qwen3", "Qwen3Model", 2),
        ("gemma3", "Gemma3TextModel", 2),  # not the encoder of images
        ("llama4", "Llama4TextModel", 3),
        ("opt", "OPTDecoder", 2),
        ("gpt2", "GPT2Model", 2),
        ("granite_swa", "GraniteSWAModel", 2),  # lists its rotary embeddings too
        ("hrm_text", "HrmTextModel", None),  # two stacks
    ],
)
def test_decoders_and_their_layers(kind: str, decoder: str, layers: int | None) -> None:
    model = small_model(small_config(kind))
    found = layers_of(decoder_of(model))
    assert type(decoder_of(model)).__name__ == decoder
    assert layers is None or len(found) == layers
    assert all(any(True for _ in layer.parameters()) for layer in found)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear: expected a list of decoder layers, found none"):
        layers_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, LogitMap()),
        ("cohere", {"logit_scale": 0.0625}, LogitMap(0.0625)),
        ("granite", {"logits_scaling": 8.0}, LogitMap(0.125)),
        ("hyperclovax", {"logits_scaling": 0.5}, LogitMap(0.5)),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, LogitMap(0.5)),
        ("minicpm3", {"dim_model_base": 16, "hidden_size": 64}, LogitMap(0.25)),
        ("gemma2", {"final_logit_softcapping": 30.0}, LogitMap(1.0, 30.0)),
        ("gemma3_text", {"final_logit_softcapping": None}, LogitMap()),
    ],
)
def test_maps_of_logits_are_the_configs_and_the_models(
    kind: str, changes: dict[str, object], expected: LogitMap
) -> None:
    model = small_model(small_config(kind, **changes))
    assert logit_map_of(model) == expected
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        z = expected.scale * head_of(model)(decoder_of(model)(input_ids=ids).last_hidden_state)
        z = z if expected.cap is None else expected.cap * torch.tanh(z / expected.cap)
        torch.testing.assert_close(z, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_scores_with_caps_are_left_to_eager_attention() -> None:
    assert own_attention(small_model(small_config("gemma2"))) == "eager"
    assert own_attention(small_model(small_config("gpt_oss"))) == "eager"
    assert own_attention(small_model(small_config("qwen3"))) == "sdpa"
