"""Compiled decoder layers: the same numbers and names, and few graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from torch import distributed
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from src.algorithm.packing import PackedRow, pack
from src.errors import ConfigError
from src.models import compiling, rows
from src.models.attention import packed
from src.models.loading.lora import LoraSettings, add_lora
from src.models.loading.policy_config import PolicyConfig
from src.models.policy import Policy
from src.models.recomputing import Recomputed
from src.models.structure import decoder_of, layers_of
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from tests.architectures.small import small_config
from tests.models.reference import perturb_adapters, random_episodes, random_group, tiny_model

Way = Literal["packed", "separate"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made and counted as always, and run as they are: no compiler is waited for."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """When called, rows are padded and computed by FlexAttention, which has gradients in its `eager` form here."""

    def switch() -> None:
        monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
        monkeypatch.setattr(packed, "flex_supports", lambda *_: True)
        for module in (packed, rows):
            monkeypatch.setattr(module, "in_blocks", lambda _: True)

    return switch


def random_rows(count: int) -> list[PackedRow]:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for index in range(count):
        groups = [
            random_group(draw(1, 90), [draw(1, 40) for _ in range(draw(1, 4))], seed=index + n)
            for n in range(index % 3)
        ]
        found.append(pack([*groups, random_episodes(draw(1, 90), seed=index)]))
    return found


def outcomes(policy: Policy, count: int) -> list[list[torch.Tensor]]:
    """Of each row: scores without and with gradients, and the gradients of a loss through both outputs."""
    found = []
    for row in random_rows(count):
        with torch.no_grad():
            scored = policy(row)
        scores = policy(row)
        (scores.logprobs.sum() + 0.3 * scores.entropies.sum()).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        found.append([scored.logprobs, scores.logprobs, scores.entropies, *map(whole, gradients)])
        policy.zero_grad()
    return found


def whole(gradient: torch.Tensor) -> torch.Tensor:
    """Also of a shard."""
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def assert_same(found: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()


def build(way: Way = "packed", what: Recomputed = False, *, lora: bool = False, compiled: bool = False) -> Policy:
    model = tiny_model("qwen3", hidden_size=64, head_dim=16)
    if lora:
        add_lora(model, LoraSettings(rank=4, alpha=4))
        perturb_adapters(model)
    return Policy(model, rows=way, gradient_checkpointing=what, compile_layers=compiled).train()


def test_layers_share_their_graphs_over_lengths(traced: None, as_on_cuda: Callable[[], None]) -> None:
    """Two layers, with and without gradients."""
    expected, compiled = outcomes(build(), 3), build(compiled=True)
    as_on_cuda()
    assert_same(outcomes(compiled, 3), expected)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert list(compiled.state_dict()) == list(build().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("what", [False, "full", "selective"])
@pytest.mark.parametrize(("way", "lora"), [("packed", False), ("packed", True), ("separate", False)])
def test_compiled_layers_are_the_layers(way: Way, lora: bool, what: Recomputed) -> None:
    """By Inductor; on CPUs the attention of packed rows lies between two graphs."""
    assert_same(outcomes(build(way, what, lora=lora, compiled=True), 10), outcomes(build(way, lora=lora), 10))
    assert counters["stats"]["unique_graphs"] <= (13 if lora else 10)  # the input of the first layer has no gradient


@pytest.mark.slow
@pytest.mark.parametrize("what", [False, "full"])
def test_compiled_layers_with_flex_attention(what: Recomputed, traced: None, as_on_cuda: Callable[[], None]) -> None:
    expected = outcomes(build(what=what), 10)
    as_on_cuda()
    assert_same(outcomes(build(what=what, compiled=True), 10), expected)
    assert counters["stats"]["unique_graphs"] <= (4 if what else 2)  # those of the repetitions in the backward


@pytest.mark.slow
@pytest.mark.parametrize("what", [False, "full"])
def test_compiled_layers_can_be_sharded(what: Recomputed, traced: None, as_on_cuda: Callable[[], None]) -> None:
    """FSDP2 on one rank, its hooks around the compiled code."""
    expected, compiled = outcomes(build(), 4), build(what=what, compiled=True)
    as_on_cuda()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        for layer in layers_of(decoder_of(compiled.model)):
            fully_shard(layer, mesh=mesh)
        fully_shard(compiled, mesh=mesh)
        assert_same(outcomes(compiled, 4), expected)
    finally:
        distributed.destroy_process_group()
    assert counters["stats"]["unique_graphs"] <= (4 if what else 2)
    assert list(compiled.state_dict()) == list(build().state_dict())


def test_the_engine_samples_from_layers_that_are_not_compiled(traced: None) -> None:
    params, prompts = SamplingParams(n=2, max_new_tokens=3, stop_token_ids=(2,)), [torch.tensor([5, 6, 7])]
    sampled = [NativeEngine(build(compiled=on).model).generate(prompts, params, [0]) for on in (True, False)]
    assert sampled[0][0][0].token_ids.equal(sampled[1][0][0].token_ids)
    assert not counters["stats"]


def test_mixtures_and_quantised_weights_are_refused() -> None:
    mixture = AutoModelForCausalLM.from_config(small_config("qwen3_moe", mlp_only_layers=[]))
    with pytest.raises(ConfigError, match="expected a dense model, found a mixture of experts"):
        Policy(mixture, compile_layers=True)
    with pytest.raises(ConfigError, match="compile_layers=true: expected weights that PyTorch's compiler reads"):
        PolicyConfig(hub_id="a/b", compile_layers=True, four_bit=True, lora=LoraSettings(rank=4))
