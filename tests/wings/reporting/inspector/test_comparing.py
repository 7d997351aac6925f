"""What is wrong with a completion, and its calls beside the gold calls."""

import pytest

from src.protocol.dialogue import ToolCall
from src.protocol.formats.rest import parse
from src.wings.reporting.inspector.comparing import Failure, failure_kind, pair_calls

GOLD = [ToolCall("sky", {"city": "Oslo", "day": 1})]
THINK = "<think> x </think>\n"


def response(*calls: str) -> str:
    return THINK + "<tool_call>\n" + "\n".join(calls) + "\n</tool_call>"


RIGHT = '{"name": "sky", "parameters": {"city": "Oslo", "day": 1}}'


@pytest.mark.parametrize(
    ("text", "gold", "scores", "expected"),
    [
        (response(RIGHT), GOLD, (1, 1, "stop"), Failure.CORRECT),
        (response(RIGHT), GOLD, (1, 1, "length"), Failure.CORRECT),
        (response(RIGHT)[:-5], GOLD, (0, 0, "length"), Failure.TRUNCATED),
        ("It rains.", GOLD, (0, 0, "stop"), Failure.NO_FORMAT),
        ("", GOLD, (0, 0, "stop"), Failure.NO_FORMAT),
        (response("{broken"), GOLD, (1, 0, "stop"), Failure.NO_FORMAT),
        (response(RIGHT) + " and so on", GOLD, (0, 1, "stop"), Failure.NO_FORMAT),
        (response(RIGHT).removeprefix(THINK), GOLD, (0, 1, "stop"), Failure.NO_FORMAT),
        (THINK + "<response> Rain. </response>", GOLD, (0, 0, "stop"), Failure.MISSING_CALL),
        (response(RIGHT), [*GOLD, ToolCall("sky", {})], (1, 0, "stop"), Failure.MISSING_CALL),
        (response(RIGHT, RIGHT), GOLD, (1, 0, "stop"), Failure.EXTRA_CALL),
        (response(RIGHT), [], (0, 0, "stop"), Failure.EXTRA_CALL),
        (response(RIGHT.replace("sky", "sun")), GOLD, (1, 0, "stop"), Failure.WRONG_NAME),
        (response(RIGHT.replace("day", "hour")), GOLD, (1, 0, "stop"), Failure.WRONG_PARAMETER_NAMES),
        (response('{"name": "sky", "parameters": {}}'), GOLD, (1, 0, "stop"), Failure.WRONG_PARAMETER_NAMES),
        (response(RIGHT.replace("Oslo", "Rome")), GOLD, (1, 0, "stop"), Failure.WRONG_VALUES),
        (response(RIGHT.replace("1", "true")), GOLD, (1, 0, "stop"), Failure.WRONG_VALUES),
        (THINK + "<response>  </response>", [], (1, 0, "stop"), Failure.NO_FORMAT),
    ],
)
def test_failure_kinds(text, gold, scores, expected):
    format_score, exact, finish = scores
    kind = failure_kind(parse(text), gold, format=format_score, exact_match=exact, finish_reason=finish)
    assert kind is expected


def test_calls_are_paired_as_the_reward_matches_them():
    """The matcher gives Rome's gold call the second prediction, so the first is left for the gold call without one."""
    gold = [ToolCall("sky", {"city": "Rome"}), ToolCall("route", {"to": "Oslo"})]
    predicted = [ToolCall("path", {"to": "Oslo"}), ToolCall("sky", {"city": "Rome"}), ToolCall("sky", {"city": "Bonn"})]
    pairs = pair_calls(predicted, gold)
    assert [(pair.predicted, pair.gold, pair.matched) for pair in pairs] == [
        ("sky", "sky", True),
        ("path", "route", False),
        ("sky", None, False),
    ]
    assert [[row.state.value for row in pair.rows] for pair in pairs] == [["same"], ["same"], ["extra"]]


def test_a_call_that_scores_nothing_stands_beside_its_namesake():
    (pair, other) = pair_calls([ToolCall("sky", {"hour": 3})], [ToolCall("sun", {}), ToolCall("sky", {"city": "Oslo"})])
    assert (pair.predicted, pair.rows) == (None, ())
    assert other.predicted == "sky" and not other.matched
    assert [(row.name, row.predicted, row.gold, row.state.value) for row in other.rows] == [
        ("city", None, '"Oslo"', "missing"),
        ("hour", "3", None, "extra"),
    ]
