"""Samples on a model's own cache: those of the shared-prefix cache, whatever the batches are."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from src.rollout.engine import Cache, Completion, SamplingParams
from src.rollout.native.engine import NativeEngine
from src.rollout.native.own_cache import _batches
from tests.models.reference import tiny_model

PARAMS = SamplingParams(n=3, max_new_tokens=12, temperature=0.9, top_p=0.9, stop_token_ids=(5, 6))
OWN: tuple[Cache, ...] = ("padded", "even", "none")


def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(7, 97, (length,), generator=generator) for length in (9, 4, 9, 15)]


def same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    for one, other in zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.finish_reason == other.finish_reason
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("cache", OWN)
@pytest.mark.parametrize("sequences", [256, 7, 1])
@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_samples_are_those_of_the_shared_cache(cache: Cache, sequences: int, temperature: float) -> None:
    model = tiny_model("qwen3")
    params = SamplingParams(n=3, max_new_tokens=12, temperature=temperature, stop_token_ids=(5, 6))
    expected = NativeEngine(model).generate(prompts(), params, [1, 2, 3, 4])
    assert {one.finish_reason for group in expected for one in group} == {"stop", "length"} or temperature == 0
    found = NativeEngine(model, cache=cache, max_sequences=sequences).generate(prompts(), params, [1, 2, 3, 4])
    same(found, expected)


def test_the_models_generation_config_changes_nothing() -> None:
    model = tiny_model("llama")
    expected = NativeEngine(model, cache="padded").generate(prompts(), PARAMS, [1, 2, 3, 4])
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(20, 60))
    model.generation_config.min_new_tokens = 10
    same(NativeEngine(model, cache="padded").generate(prompts(), PARAMS, [1, 2, 3, 4]), expected)
    assert model.generation_config.repetition_penalty == 5.0


def test_a_watcher_sees_tokens_as_they_come() -> None:
    model, seen = tiny_model("llama"), []
    engine = NativeEngine(model, cache="even")
    engine.watch = lambda tokens: seen.append(tokens.tolist())
    ((answer,),) = engine.generate(prompts()[:1], SamplingParams(max_new_tokens=5, temperature=0.0), [0])
    assert seen == [[token] for token in answer.token_ids[:-1].tolist()]


def test_batches_keep_to_their_budgets() -> None:
    """3 completions a prompt, 12 new tokens each; lengths 9, 4, 9, 15, the longest first."""
    lengths = [9, 4, 9, 15]

    def batches(cache: Cache, sequences: int = 256, tokens: int = 10_000) -> list[list[int]]:
        return list(_batches(lengths, PARAMS, cache, sequences, tokens))

    assert batches("padded") == [[3, 0, 2, 1]]
    assert batches("padded", sequences=6) == [[3, 0], [2, 1]]
    assert batches("padded", sequences=2) == [[3], [0], [2], [1]]  # one prompt always fits
    assert batches("padded", tokens=162) == [[3, 0], [2, 1]]  # 6 x (15 + 12) = 162
    assert batches("even") == batches("none") == [[3], [0, 2], [1]]


def test_an_unknown_cache_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout\.cache: expected 'auto' or one of .*, found 'paged'"):
        NativeEngine(tiny_model("llama"), cache="paged")  # type: ignore[arg-type]
