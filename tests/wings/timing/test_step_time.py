"""The formulas against numbers worked out by hand."""

from dataclasses import replace

import pytest

from src.errors import ConfigError
from src.wings.timing.devices import Device
from src.wings.timing.savings import SAVINGS, savings
from src.wings.timing.step_time import (
    Assumptions,
    Engine,
    ModelSize,
    Setup,
    StepShape,
    body_flops,
    decode_seconds,
    head_flops,
    predict,
    prefill_seconds,
    scoring_seconds,
    update_seconds,
)

MODEL = ModelSize(
    body=1000, stored=1200, trained=1.0, hidden=10, vocabulary=20, layers=2, query=8, key_values=16
)  # fmt: skip
SHAPE = StepShape(prompts=4, completions=2, prompt=10, completion=5, row_tokens=36, optimizer_steps=2, scored=0.5)
DEVICE = Device("made up", half=2e6, single=1e6, bandwidth=2e4, link=1e5, memory=1e6)
GIVEN = Assumptions(10, 5, flops_share=0.5, bandwidth_share=0.5, waiting=1.5)
SETUP = Setup(MODEL, SHAPE, Engine(together=4, shares_prompts=False), DEVICE, GIVEN)


def test_tokens_and_pairs_of_packed_and_separate_rows():
    assert (SHAPE.tokens, SHAPE.sampled) == (4 * (10 + 2 * 4), 4 * 2 * 5)
    assert SHAPE.pairs == 4 * (55 + 2 * (4 * 10 + 4 * 5 // 2))  # 620
    separate = replace(SHAPE, packed=False)
    assert separate.tokens == 8 * 14
    assert separate.pairs == 8 * (14 * 15 // 2)  # the causal pairs of 8 sequences of 14 inputs


def test_operations_of_a_forward():
    assert body_flops(MODEL, 72, 620) == 2 * 1000 * 72 + 4 * 2 * 8 * 620  # 183,680
    assert head_flops(MODEL, 40) == 2 * 10 * 20 * 40  # 16,000


def test_an_update_is_four_forwards_of_the_body_three_of_the_head_and_the_optimizer():
    products = 4 * 183_680 + 3 * 16_000
    steps = 2 * 28 * 1200 / 1e4  # two steps move 28 bytes a weight at half of 20 kB/s
    assert update_seconds(SETUP) == pytest.approx(products / 1e6 + steps)
    kept = replace(SETUP, shape=replace(SHAPE, recomputed=0.0))
    assert update_seconds(SETUP) - update_seconds(kept) == pytest.approx(183_680 / 1e6)


def test_frozen_weights_have_no_gradient_of_their_own():
    adapters = replace(SETUP, model=replace(MODEL, trained=0.0))
    assert update_seconds(adapters) == pytest.approx((3 * 183_680 + 2 * 16_000) / 1e6)


def test_ranks_share_the_work_and_wait_for_each_other():
    two = replace(SETUP, ranks=2)
    assert scoring_seconds(SETUP) == pytest.approx(0.5 * (183_680 + 16_000) / 1e6)
    assert scoring_seconds(two) == pytest.approx(scoring_seconds(SETUP) / 2 * 1.5)
    assert predict(two)["sync"] == 0.0


def test_what_sharded_ranks_send_can_be_longer_than_their_products():
    sharded = replace(SETUP, ranks=2, sharded=True, shape=replace(SHAPE, row_tokens=1))
    sent = 36 * 1200 * 8 / 5e4  # a row a token: 72 tokens on two ranks, at half of 100 kB/s
    steps = 2 * 28 * 600 / 1e4
    assert update_seconds(sharded) == pytest.approx(1.5 * sent + steps)
    assert predict(sharded)["sync"] == pytest.approx(1200 * 2 / 5e4)


def test_decoding_reads_weights_and_keys_at_every_step():
    # 8 completions, 4 at a time, for 5 steps each: 10 steps of 1,200 weights and 4 x (10 + 2.5) tokens of 16 numbers
    assert decode_seconds(SETUP) == pytest.approx(10 * (1200 * 2 + 4 * 12.5 * 16 * 2) / 1e4)
    # a cache of 960 bytes holds 30 tokens, two completions of 15
    small = replace(SETUP, engine=replace(SETUP.engine, cache=960.0))
    assert decode_seconds(small) == pytest.approx(20 * (1200 * 2 + 2 * 12.5 * 16 * 2) / 1e4)
    # shared prompts leave 5 + 5 tokens of each: three completions
    shared = replace(small, engine=replace(small.engine, shares_prompts=True))
    assert decode_seconds(shared) == pytest.approx(40 / 3 * (1200 * 2 + 3 * 12.5 * 16 * 2) / 1e4)


def test_decoding_of_many_is_bound_by_products():
    slow = replace(SETUP, device=replace(DEVICE, half=1e4))
    assert decode_seconds(slow) == pytest.approx(10 * 4 * 2 * (1000 + 200) / 5e3)


def test_prompts_are_filled_in_once():
    assert prefill_seconds(SETUP) == pytest.approx((2 * 1000 * 40 + 4 * 2 * 8 * 4 * 55) / 1e6)


def test_supervised_steps_sample_nothing():
    parts = predict(replace(SETUP, sharded=True, shape=replace(SHAPE, samples=False)))
    assert parts["rollout"] == parts["sync"] == 0.0


def test_impossible_assumptions_are_refused():
    with pytest.raises(ConfigError, match=r"preflight.timing.flops_share: expected in \(0, 1\], found 0"):
        replace(GIVEN, flops_share=0)


def test_savings_are_differences_of_predictions():
    found = {saving.overrides: seconds for saving, seconds in savings(SETUP)}
    assert found["policy.gradient_checkpointing=selective"] == pytest.approx(183_680 / 1e6)
    assert found["updates.old_logprobs=sampler algorithm.loss.importance_cap=2"] == pytest.approx(
        scoring_seconds(SETUP)
    )
    assert list(found.values()) == sorted(found.values(), reverse=True)
    nothing = replace(SETUP, shape=replace(SHAPE, recomputed=0.0, scored=0.0))
    gone = {saving.overrides for saving, _ in savings(nothing)}
    assert not gone & {
        "policy.gradient_checkpointing=selective",
        "updates.old_logprobs=sampler algorithm.loss.importance_cap=2",
    }
    assert all(saving.keys for saving in SAVINGS)
