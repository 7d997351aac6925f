"""Gradient checkpointing: the same gradients, and which operations run again."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.algorithm.packing import pack
from src.errors import ConfigError
from src.models.loading.policy_config import PolicyConfig
from src.models.policy import Policy
from src.models.recomputing import Recomputed
from tests.models.reference import random_episodes, random_group, tiny_model

aten = torch.ops.aten
ROW = [random_group(7, [5, 1, 9]), random_episodes(12, seed=1), random_group(3, [2, 8], seed=2)]


class Calls(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[function] += 1
        return function(*args, **(kwargs or {}))


def run(what: Recomputed, rows: Literal["packed", "separate"]) -> tuple[dict[str, torch.Tensor], Counter[Any]]:
    """Gradients of a loss through both outputs, and the operations of its backward."""
    policy = Policy(tiny_model("qwen3"), rows=rows, gradient_checkpointing=what).train()
    scores = policy(pack(ROW))
    loss = (scores.logprobs * torch.linspace(-1, 1, len(scores.logprobs))).sum() + 0.3 * scores.entropies.sum()
    with Calls() as calls:
        loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, calls.counts


@pytest.mark.parametrize("rows", ["packed", "separate"])
def test_gradients_are_the_same_and_selective_repeats_no_product(rows: Literal["packed", "separate"]) -> None:
    plain, kept = run(False, rows)
    full, repeated = run("full", rows)
    selective, cheap = run("selective", rows)
    for found in (full, selective):
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():  # the same kernels on the same numbers
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)
    products, attention = aten.mm.default, aten._scaled_dot_product_flash_attention_for_cpu.default
    assert repeated[products] - kept[products] >= 2 * 6  # two layers, down_proj's product is not needed
    assert repeated[attention] > kept[attention] == 0
    assert cheap[products] == kept[products] and cheap[attention] == 0
    assert cheap[aten.silu.default] == repeated[aten.silu.default] == 2 and kept[aten.silu.default] == 0


@pytest.mark.parametrize("what", [True, "full"])
def test_true_is_full(what: Recomputed) -> None:
    policy = Policy(tiny_model("qwen3"), gradient_checkpointing=what)
    assert policy.model.is_gradient_checkpointing
    assert PolicyConfig(hub_id="a/b", gradient_checkpointing=what).gradient_checkpointing == what


def test_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected false, 'full' or 'selective' \(true is 'full'\), found 'some'"):
        PolicyConfig(hub_id="a/b", gradient_checkpointing="some")  # type: ignore[arg-type]
