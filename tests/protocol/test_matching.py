"""The matcher: JSON equality, pairing of calls, exact match."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse
from src.protocol.matching import is_exact_match, json_equal, match_calls, overlap, same_calls


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (True, 1, False),
        (False, 0, False),
        (True, True, True),
        (1, 1.0, True),
        (0.1, 0.10000000000000001, True),
        (2**53 + 1, float(2**53), False),
        ("1", 1, False),
        ("a", "A", False),
        (None, False, False),
        (None, None, True),
        ([1, 2], [2, 1], False),
        ([1, True], [1, True], True),
        ([1], [True], False),
        ({"a": 1, "b": [{}]}, {"b": [{}], "a": 1.0}, True),
        ({"a": None}, {}, False),
        ({"a": None}, {"b": None}, False),
        ([], {}, False),
    ],
)
def test_json_equal(a: object, b: object, equal: bool) -> None:
    assert json_equal(a, b) is equal
    assert json_equal(b, a) is equal


def test_overlap_counts_repeats() -> None:
    assert overlap(["f", "f", "g"], ["f", "g", "g"]) == 2 / 4  # min 1 + min 1 over max 2 + max 2
    assert overlap(["f"], []) == 0.0
    assert overlap({"x": 1, "y": 2}, {"x": 5}.keys()) == 1 / 2


def test_overlap_is_that_of_multisets() -> None:
    generator = random.Random(5)
    for _ in range(500):
        a, b = (generator.choices("fgh", k=generator.randrange(5)) for _ in range(2))
        union = (Counter(a) | Counter(b)).total()
        assert overlap(a, iter(b)) == ((Counter(a) & Counter(b)).total() / union if union else 1.0)


def test_each_gold_call_takes_the_best_unused_prediction() -> None:
    gold = [ToolCall("sky", {"city": "Oslo"}), ToolCall("sky", {"city": "Oslo"}), ToolCall("wind", {"city": "Oslo"})]
    predicted = [
        ToolCall("sky", {"city": "Rome"}),  # names 1, values 0
        ToolCall("sky", {"city": "Oslo", "day": 1}),  # names 1/2, values 1
        ToolCall("gale", {"city": "Oslo"}),
    ]
    matches = match_calls(predicted, gold)
    assert [(m.gold, m.predicted, m.parameter_names, m.values) for m in matches] == [
        (0, 1, 0.5, 1),
        (1, 0, 1.0, 0),
        (2, None, 0.0, 0),
    ]
    assert [m.score for m in matches] == [1.5, 1.0, 0.0]


def test_ties_go_to_the_first_and_zeros_are_left_for_others() -> None:
    assert match_calls([ToolCall("f", {}), ToolCall("f", {})], [ToolCall("f", {})])[0].predicted == 0
    gold = [ToolCall("f", {"x": 1}), ToolCall("f", {"y": 1})]
    assert [m.predicted for m in match_calls([ToolCall("f", {"y": 1})], gold)] == [None, 0]


def test_the_scores_add_up_to_the_most_that_any_assignment_has() -> None:
    generator = random.Random(7)

    def made() -> list[ToolCall]:
        names = generator.choices("fg", k=generator.randrange(1, 5))
        return [ToolCall(n, {key: generator.randrange(2) for key in "xyz"[: generator.randrange(4)]}) for n in names]

    improved = 0
    for _ in range(400):
        predicted, gold = made(), made()
        chosen = match_calls(predicted, gold)
        used = [match.predicted for match in chosen if match.predicted is not None]
        assert len(used) == len(set(used)) and [match.gold for match in chosen] == list(range(len(gold)))
        padded = [*predicted, *[ToolCall("none", {})] * len(gold)]
        single = [[match_calls([other], [call])[0].score for other in padded] for call in gold]
        most = max(
            sum(single[row][column] for row, column in enumerate(columns))
            for columns in itertools.permutations(range(len(padded)), len(gold))
        )
        assert sum(match.score for match in chosen) == pytest.approx(most)
        improved += used != sorted(used)
    assert improved > 20


def test_same_calls_ignores_order_and_counts_repeats() -> None:
    a, b = ToolCall("f", {"x": 1}), ToolCall("g", {})
    assert same_calls([a, b, a], [a, a, b])
    assert not same_calls([a, b, b], [a, a, b])
    assert not same_calls([a], [a, a])
    assert not same_calls([ToolCall("f", {"x": True})], [a])
    assert same_calls([], [])


def test_exact_match() -> None:
    call = '<think></think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
    wants_call = Message("assistant", calls=(ToolCall("f", {"x": 1.0}),))
    refuses = Message("assistant", text="No tool fits.")
    assert is_exact_match(parse(call), wants_call)
    assert is_exact_match(parse(call + " and more"), wants_call)
    assert not is_exact_match(parse(call.replace("1", "2")), wants_call)
    assert not is_exact_match(parse(call.removesuffix("</tool_call>")), wants_call)
    assert is_exact_match(parse("<think></think><response> Other words. </response>"), refuses)
    assert not is_exact_match(parse("<think></think><response> </response>"), refuses)
    assert not is_exact_match(parse("<think></think>"), refuses)
    assert not is_exact_match(parse(call + "<response>No.</response>"), refuses)
    assert not is_exact_match(parse("<tool_call></tool_call><response>No.</response>"), refuses)
