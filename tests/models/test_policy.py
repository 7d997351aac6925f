"""Packed rows against ordinary padded rows: the same log-probabilities, entropies and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.models.policy import Policy
from tests.models.reference import padded_scores, random_group, tiny_model

TOLERANCE = 1e-5


def ragged_groups(vocabulary: int = 97) -> list[PromptGroup]:
    """Prompts of 7, 1, 12, 6 and 5 tokens; completions from 1 token up, in blocks of one and of several groups."""
    shapes = [(7, [5, 1, 9]), (1, [2, 8, 3]), (12, [1, 1, 1]), (6, [8, 2, 4]), (5, [6])]
    return [random_group(p, lengths, vocabulary, seed=index) for index, (p, lengths) in enumerate(shapes)]


def weighted_loss(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
    """A loss in which every token counts differently, through both outputs."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(len(logprobs), generator=generator) * logprobs).sum() + 0.3 * entropies.sum()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Gradients by name, taken off the model."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Each parameter's gradient agrees to `TOLERANCE` of its norm, or of 1e-6 of the whole where it has hardly any."""
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        scale = torch.maximum(gradient.norm(), 1e-6 * whole)
        assert (found[name] - gradient).norm() / scale < TOLERANCE, name


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["packed", "dense"])
def test_packed_row_agrees_with_padded_rows(kind: str, attention: str, checkpointing: bool) -> None:
    model = tiny_model(kind).train()
    groups = ragged_groups()
    logprobs, entropies = padded_scores(model, groups, temperature=0.8)
    weighted_loss(logprobs, entropies).backward()
    expected = gradients(model)

    policy = Policy(model, attention=attention, gradient_checkpointing=checkpointing, head_chunk=7)
    scores = policy(pack(groups), temperature=0.8)
    weighted_loss(*scores).backward()

    torch.testing.assert_close(scores.logprobs, logprobs, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(scores.entropies, entropies, atol=TOLERANCE, rtol=0)
    assert_same_gradients(gradients(model), expected)
