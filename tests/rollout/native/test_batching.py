"""Continuous batching: who decodes when; that it changes no completion is tested here and in `test_engine`."""

import torch

from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.rollout.native.prefix_cache import PrefixCache, Room
from tests.rollout.native.test_engine import STOPS, TOLERANCE, assert_same_completions, build, forward_logprobs, ragged


def test_places_that_fall_free_are_taken():
    """With 4 places, 24 prompts take fewer steps than 6 chunks that each wait for their longest completion."""
    model, prompts = build("qwen3"), ragged(*[7] * 24)
    params = SamplingParams(max_new_tokens=60, stop_token_ids=STOPS)
    rows: list[int] = []  # of every step
    engine = NativeEngine(model, max_sequences=4)
    engine.watch = lambda tokens: rows.append(len(tokens))
    groups = engine.generate(prompts, params, list(range(24)))
    lengths = [len(group[0].token_ids) for group in groups]
    chunks = sum(max(lengths[i : i + 4]) - 1 for i in range(0, 24, 4))
    assert max(rows) == 4
    assert len(rows) < 0.8 * chunks
    # a row stays in the batch until a fifth of the rows is done
    assert sum(rows) < 1.3 * sum(length - 1 for length in lengths)
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        expected = forward_logprobs(model, prompt, completion)
        torch.testing.assert_close(completion.logprobs, expected, atol=TOLERANCE, rtol=0)


def test_more_short_prompts_than_long_ones_fit(monkeypatch):
    sizes: list[Room] = []
    resize = PrefixCache.resize
    monkeypatch.setattr(
        PrefixCache, "resize", lambda self, room, *rest: sizes.append(room) or resize(self, room, *rest)
    )
    model, prompts = build("llama"), ragged(100, 90, 6, 5, 9, 4, 8, 7)
    params = SamplingParams(n=2, max_new_tokens=30, stop_token_ids=STOPS)
    seeds = list(range(8))
    narrow = NativeEngine(model, max_batch_tokens=170).generate(prompts, params, seeds)
    assert [room.rows > 2 for room in sizes] == [True] * len(sizes) != []
    assert_same_completions(narrow, NativeEngine(model).generate(prompts, params, seeds), model, prompts, params, seeds)


def test_a_batch_that_ends_with_its_first_tokens_makes_way():
    model, prompts = build("qwen3"), ragged(3, 4, 5, 6)
    everything = tuple(range(97))
    for params in (
        SamplingParams(n=2, max_new_tokens=9, stop_token_ids=everything),
        SamplingParams(n=2, max_new_tokens=1),
    ):
        groups = NativeEngine(model, max_sequences=2).generate(prompts, params, [1, 2, 3, 4])
        assert [len(c.token_ids) for group in groups for c in group] == [1] * 8


def test_what_was_never_written_is_never_read(monkeypatch):
    """Rows and prompts that enter late, among others; storage is filled with NaN here, which would spread."""
    allocate = PrefixCache._allocate

    def spoiled(self, layer, *pair):
        allocate(self, layer, *pair)
        for x in (*self._prompt[layer], *self._own[layer]):
            x.fill_(torch.nan)

    monkeypatch.setattr(PrefixCache, "_allocate", spoiled)
    model, prompts = build("qwen3"), ragged(90, 9, 30, 2, 17, 12, 3)
    params = SamplingParams(n=2, max_new_tokens=40, stop_token_ids=STOPS)
    for budget in (131_072, 300):
        engine = NativeEngine(model, max_sequences=4, max_batch_tokens=budget)
        for group in engine.generate(prompts, params, list(range(7))):
            assert all(c.logprobs.isfinite().all() for c in group)
