"""Rows of both kinds against each model's own eager attention, one sequence at a time: every gradient by itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.models.policy import Policy
from tests.architectures.small import VOCABULARY, small_config, small_model
from tests.models.reference import random_group

GROUPS = [random_group(40, [5, 20, 12], VOCABULARY, 1), random_group(23, [9, 1, 3], VOCABULARY, 2)]
"""Past the windows of 16 tokens: prompts, and one completion by itself."""

PACKED = (
    "qwen3 llama gpt_oss gemma2 gemma3 gemma3n gemma4 mistral olmo3 exaone4 starcoder2 phimoe mimo_v2_flash "
    "granite_swa cohere2 minicpm3 nanochat nemotron qwen3_moe deepseek_v3 smollm3"
).split()
SEPARATE = "qwen3 qwen3_5 qwen3_next falcon_h1 granitemoehybrid lfm2 nemotron_h jamba llama4 mamba2 bloom".split()


def plain(model: PreTrainedModel, groups: list[PromptGroup]) -> Tensor:
    found = []
    for group in groups:
        for completion in group.token_ids.split(group.lengths.tolist()):
            ids = torch.cat([group.prompt_ids, completion])
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].double()
            found.append(logits.log_softmax(-1).gather(1, completion[:, None])[:, 0])
    return torch.cat(found)


def gradients(model: PreTrainedModel, logprobs: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every token counts differently."""
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (weights * logprobs).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "rows"), [*((kind, "packed") for kind in PACKED), *((kind, "separate") for kind in SEPARATE)]
)
def test_rows_give_the_plain_models_numbers(kind: str, rows: Literal["packed", "separate"]) -> None:
    model = small_model(small_config(kind))
    model.set_attn_implementation("eager")
    expected = plain(model, GROUPS)
    expected_gradients = gradients(model, expected)

    found = Policy(model, rows=rows).eval()(pack(GROUPS)).logprobs
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    found_gradients = gradients(model, found)
    whole = torch.stack([g.norm() for g in expected_gradients.values()]).norm()
    assert set(found_gradients) == {name for name, p in model.named_parameters() if name in expected_gradients}
    for name, gradient in expected_gradients.items():
        # relative to its own size, or to 1e-4 of the whole where it is a difference of large terms
        assert (found_gradients[name] - gradient).norm() < 1e-4 * max(gradient.norm(), 1e-1 * whole), name


def test_a_row_of_separate_sequences_is_its_groups() -> None:
    policy = Policy(small_model(small_config("qwen3_5")), rows="separate").eval()
    with torch.no_grad():
        alone = torch.cat([policy(pack([group])).logprobs for group in GROUPS])
        torch.testing.assert_close(policy(pack(GROUPS)).logprobs, alone, atol=1e-5, rtol=0)


def test_an_encoder_of_images_gets_no_gradient() -> None:
    model = small_model(small_config("gemma3"))
    policy = Policy(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any("vision" in name or "projector" in name for name in trained)
    policy(pack(GROUPS)).logprobs.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
