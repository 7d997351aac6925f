"""Mutated and random texts through parser, rewards, regions and token weights; `python -m tests.fuzzing` takes more."""

from __future__ import annotations

from tests.fuzzing import mutated_texts
from tests.protocol.fuzz_checks import fuzz

COUNT, SEED = 20_000, 20260101


def test_nothing_raises_and_rewards_stay_in_bounds() -> None:
    done = fuzz(COUNT, SEED)
    assert done.texts == COUNT
    assert done.exact > COUNT // 1000  # some mutations leave a target as it was: the texts are not all junk


def test_texts_are_the_same_for_a_seed() -> None:
    assert list(mutated_texts(50, 3)) == list(mutated_texts(50, 3))
    assert list(mutated_texts(50, 3)) != list(mutated_texts(50, 4))
