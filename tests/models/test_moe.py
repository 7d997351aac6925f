"""Routers of small mixtures, their precision under autocast, and how even their use is, by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from src.algorithm.packing import pack
from src.errors import ConfigError
from src.models.moe import (
    balance_loss,
    choices_recorded,
    experts_chosen,
    route_in_float32,
    routers_of,
    share_of_equal_choices,
)
from src.models.policy import Policy
from src.models.structure import decoder_of
from tests.architectures.small import VOCABULARY, small_config, small_model
from tests.models.reference import random_group

MIXTURES = "qwen3_moe mixtral gpt_oss deepseek_v3 qwen3_5_moe lfm2_moe llama4 jamba gemma4_text".split()
ROW = pack([random_group(9, [5, 3], VOCABULARY)])


@pytest.mark.parametrize("kind", MIXTURES)
def test_every_layer_with_experts_has_its_router(kind: str) -> None:
    model = small_model(small_config(kind))
    layers = {name.split(".experts")[0] for name, _ in model.named_parameters() if ".experts" in name}
    assert len(routers_of(decoder_of(model))) == len(layers) > 0
    assert experts_chosen(model.config) == 2 or kind == "llama4"
    assert routers_of(decoder_of(small_model(small_config("qwen3")))) == []


@pytest.mark.parametrize("kind", MIXTURES)
def test_under_autocast_routers_choose_in_float32(kind: str) -> None:
    model = small_model(small_config(kind))
    route_in_float32(decoder_of(model))
    seen: list[tuple[torch.dtype, bool]] = []
    for router in routers_of(decoder_of(model)):
        func, owner, inner = router.forward.func, *router.forward.args

        def watched(x: torch.Tensor, *rest: object, inner: Any = inner, **more: object) -> object:
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return inner(x, *rest, **more)

        router.forward = partial(func, owner, watched)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoder_of(model)(input_ids=ROW.input_ids[None], use_cache=False)
    assert seen and set(seen) == {(torch.float32, False)}


def test_the_loss_of_even_and_of_one_sided_use_by_hand() -> None:
    """4 experts, 2 a token. Even: f = 1/2, P = 1/4, 4 * 4/8 = 2. Two take all with p = 0.4 each: 4 * 0.8 = 3.2."""
    model = small_model(small_config("qwen3_moe"))
    even = torch.tensor([[9.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 9.0]]) * 10
    assert balance_loss((even,), model).item() == pytest.approx(2.0)
    one_sided = torch.tensor([[0.4, 0.4, 0.1, 0.1]]).log().expand(8, 4)
    assert balance_loss((one_sided,), model).item() == pytest.approx(3.2)
    padded = torch.cat([one_sided, torch.full((2, 4), 7.0)])
    assert balance_loss((padded,), model, torch.arange(10) < 8).item() == pytest.approx(3.2)  # padding does not count
    assert balance_loss(None, model) == 0.0


@pytest.mark.parametrize(("kind", "rows"), [("qwen3_moe", "packed"), ("qwen3_5_moe", "separate")])
def test_the_loss_reaches_the_routers_and_only_if_it_is_asked_for(kind: str, rows: str) -> None:
    def nothing(logprobs: torch.Tensor, entropies: torch.Tensor, part: slice) -> torch.Tensor:
        return 0.0 * logprobs.sum()

    policy = Policy(small_model(small_config(kind)), rows=rows, router_loss=0.5)  # type: ignore[arg-type]
    scores = policy(ROW, loss=nothing)
    whole = policy.states(ROW, output_router_logits=True)
    assert whole.router_logits is not None
    expected = 0.5 * balance_loss(whole.router_logits, policy.model, whole.real)
    assert scores.balance.item() == pytest.approx(expected.item(), rel=1e-6)
    scores.balance.backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in routers_of(decoder_of(policy.model)))
    assert policy(ROW).balance == 0.0
    assert Policy(small_model(small_config(kind)), rows=rows)(ROW, loss=nothing).balance == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "rows"), [("qwen3_moe", "packed"), ("gpt_oss", "packed"), ("qwen3_5_moe", "separate")]
)
def test_recorded_choices_are_those_of_the_largest_logits(kind: str, rows: str) -> None:
    policy = Policy(small_model(small_config(kind)), rows=rows)  # type: ignore[arg-type]
    group = pack([random_group(9, [5], VOCABULARY)])
    with torch.no_grad(), choices_recorded(policy.model) as chosen:
        policy(group)
    logits = policy.states(group, output_router_logits=True).router_logits
    assert logits is not None and len(logits) == len(chosen) > 0
    with torch.no_grad(), choices_recorded(policy.model) as again:
        pass
    assert not again
    for layer, scores in zip(chosen.values(), logits, strict=True):
        assert torch.equal(layer.sort().values, scores.topk(2).indices.sort().values)


def test_a_dense_model_chooses_nothing() -> None:
    policy = Policy(small_model(small_config("qwen3")))
    with choices_recorded(policy.model) as chosen:
        policy(ROW)
    assert chosen == {}


def test_the_share_of_equal_choices_by_hand() -> None:
    """Layers 0 and 2 of three have experts. Of two tokens, one agrees in order reversed, one in one expert of two."""
    mine = {0: torch.tensor([[0, 1], [2, 3], [5, 5]]), 2: torch.tensor([[4, 5], [6, 7], [5, 5]])}
    same = torch.tensor([[[1, 0], [9, 9], [4, 5]], [[2, 3], [9, 9], [7, 6]]])
    assert share_of_equal_choices(mine, same) == 1.0
    other = torch.tensor([[[1, 0], [9, 9], [4, 5]], [[2, 1], [9, 9], [7, 6]]])
    assert share_of_equal_choices(mine, other) == pytest.approx(7 / 8)


def test_a_dense_model_has_nothing_to_balance() -> None:
    with pytest.raises(ConfigError, match=r"policy\.router_loss=0\.1: expected a mixture of experts, found none"):
        Policy(small_model(small_config("llama")), router_loss=0.1)
