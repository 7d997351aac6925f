"""How much fits a budget, by hand; attention in two parts against softmax over all keys."""

import pytest
import torch

import src.rollout.native.prefix_cache as prefix_cache
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.rollout.native.prefix_cache import (
    PrefixCache,
    Room,
    StepLayout,
    Terms,
    grid_of,
    merge,
    own_bias,
    partial_attention,
    room_for,
    shared_prefixes,
)
from tests.architectures.small import small_config, small_model


def whole(query, key, value, bias, scale):
    return (query @ key.transpose(-1, -2) * scale + bias).softmax(-1) @ value


@pytest.mark.parametrize("value_size", [16, 8])  # the fused kernel, and what stands in where it does not fit
@pytest.mark.parametrize("sharp", [1.0, 30.0])
def test_two_parts_are_the_whole(value_size, sharp):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 16) * sharp, torch.randn(3, 2, 40, 16), torch.randn(3, 2, 40, value_size)
    bias = torch.zeros(3, 1, 1, 40)
    bias[1, ..., 10:20], bias[2, ..., 31:] = -torch.inf, -torch.inf
    parts = [
        partial_attention(query, key[:, :, part], value[:, :, part], bias[..., part], Terms(0.25))
        for part in (slice(0, 25), slice(25, 40))
    ]
    # A score is a quarter of 16 products, up to 3 times `sharp`, and is rounded by some √16 2^-24 3 sharp = 7e-7 sharp,
    # two by 1e-6 sharp. Where two keys share the weight it moves by up to a quarter of that, and the output by that
    # times their distance, up to 8.
    torch.testing.assert_close(merge(*parts), whole(query, key, value, bias, 0.25), atol=2e-6 * sharp, rtol=1e-5)


def test_the_mass_is_the_log_of_the_sum():
    # scores 0 and ln 3: exponentials 1 and 3, values 8 and 4 in shares 1/4 and 3/4
    query, key = torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.0], [3.0]]]]).log().clamp(min=0)
    out, mass = partial_attention(query, key, torch.tensor([[[[8.0], [4.0]]]]), None, Terms(1.0))
    assert out.item() == pytest.approx(5.0) and mass.exp().item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("prompts", "n", "sequences", "tokens", "expected"),
    [
        (3, 2, 256, 100_000, Room(slots=3, rows=6, width=50)),  # all fit
        (9, 2, 7, 100_000, Room(slots=6, rows=6, width=50)),  # 3 groups of 2; slots for as many prompts again
        (9, 2, 256, 400, Room(slots=4, rows=8, width=50)),  # 50 + 2 x 20 a group: 4 of them take 360
        (9, 2, 256, 385, Room(slots=4, rows=8, width=50)),
        (9, 2, 6, 300, Room(slots=3, rows=6, width=50)),  # 120 for 6 completions leave 180: 3 prompts
        (9, 2, 6, 330, Room(slots=4, rows=6, width=50)),  # and 210 leave 4
        (9, 4, 1, 1, Room(slots=1, rows=4, width=50)),  # one prompt is always let in
    ],
)
def test_room(prompts, n, sequences, tokens, expected):
    assert room_for(prompts, 50, n, 20, max_sequences=sequences, max_batch_tokens=tokens) == expected


def within(batch, head, query, key):
    """A window of 4 tokens, of positions."""
    return key > query - 4


@pytest.mark.parametrize("even", [True, False])
def test_what_a_window_hides_of_prompts_and_completions(even):
    """Prompts of 5 and 3 tokens; rows at positions 6 and 5 that fed 2 and 3 tokens, the newest in column 1 of 4."""
    cache = PrefixCache(Room(slots=2, rows=2, width=5), 5)
    grid = grid_of(torch.tensor([0, 1]), [5, 3])
    positions = torch.tensor([6, 5])
    bias = None if even else own_bias(torch.tensor([2, 3]), 1, 4, 4)
    layout = StepLayout(grid, 2, 1, 4, bias, positions, cache.columns)
    assert cache.columns == 4
    prompt, own = cache.view(4, within).biases(layout, 1)
    # position 6 sees 3 to 6: of the prompt 3 and 4; position 5 sees 2 to 5: of a prompt of 3 tokens its last
    assert (prompt[:, 0, 0] > -1).tolist() == [[False, False, False, True, True], [False, False, True, False, False]]
    # columns 1, 0, 3, 2 are 0 to 3 tokens old: all within the window, as far as they are the row's
    mine = [[True] * 4] * 2 if even else [[True, True, False, False], [True, True, False, True]]
    assert (own[:, 0, 0] > -1).tolist() == mine


def test_a_window_longer_than_all_sequences_is_none():
    cache = PrefixCache(Room(slots=2, rows=2, width=5), 5)
    assert cache.view(10, within).within is None and cache.view(None, within).within is None
    assert cache.view(9, within).within is within


def test_a_part_that_a_window_hides_whole_has_no_share():
    query, key, value = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    hidden = partial_attention(query, key, value, torch.full((1, 1, 1, 3), -1e30), Terms(1.0))
    seen = partial_attention(query, key, value, None, Terms(1.0))
    assert torch.equal(merge(hidden, seen), seen[0])


def test_what_prompts_share_with_the_one_before():
    """Never all of a prompt, whose last token's logits are needed; too little is nothing."""
    one = torch.arange(200)
    other = torch.cat([one[:150], torch.tensor([7, 8])])
    assert shared_prefixes([one, one, other, one[:120], other, one]) == [0, 199, 150, 0, 0, 150]


@pytest.mark.parametrize("kind", ["mistral", "gpt_oss", "gemma2", "gemma3", "gemma4", "qwen3"])
@pytest.mark.parametrize(("sequences", "least"), [(256, 128), (4, 128), (256, 8), (6, 8)])
def test_samples_past_the_window_are_the_models(kind, sequences, least, monkeypatch):
    """Prompts of 40 and 5 tokens with 3 completions of 30 each, and windows of 16: they leave their prompts behind.

    Others share 30 tokens of the first, or all but its last, which is copied from 8 tokens on.
    """
    monkeypatch.setattr(prefix_cache, "MIN_SHARED", least)
    model = small_model(small_config(kind))
    first, short = (
        torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(length)) for length in (40, 5)
    )
    prompts = [first, torch.cat([first[:30], short]), torch.cat([first[:30], short, short]), first, short]
    seeds = list(range(len(prompts)))
    engine = NativeEngine(model, max_sequences=sequences)
    params = SamplingParams(n=3, max_new_tokens=30, stop_token_ids=(7, 8, 9))
    groups = engine.generate(prompts, params, seeds)
    model.set_attn_implementation("eager")
    for prompt, completions in zip(prompts, groups, strict=True):
        for one in completions:
            ids = torch.cat([prompt, one.token_ids])
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1].double()
            plain = logits.log_softmax(-1).gather(1, one.token_ids[:, None])[:, 0]
            torch.testing.assert_close(one.logprobs.double(), plain, atol=2e-5, rtol=0)
