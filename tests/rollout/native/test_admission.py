"""How much fits a budget, by hand."""

import pytest

from src.rollout.native.admission import Room, room_for


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
