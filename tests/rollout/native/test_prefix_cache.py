"""How much fits a budget, by hand; attention in two parts against softmax over all keys."""

import pytest
import torch

from src.rollout.native.prefix_cache import Room, Terms, merge, partial_attention, room_for


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
