"""Eq. 10-14 against numbers worked out by hand."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse
from src.rewards.tool_call import (
    AccuracySums,
    Reward,
    RewardFunction,
    ToolCallReward,
    accuracy_sums,
    format_score,
    score_parts,
)
from src.wings.published.reward import PublishedReward

SKY = Message("assistant", calls=(ToolCall("sky", {"city": "Oslo", "days": 2, "unit": "C"}),))
PARALLEL = Message(
    "assistant",
    calls=(ToolCall("sky", {"city": "Oslo"}), ToolCall("sky", {"city": "Rome"}), ToolCall("ping", {})),
)
REFUSAL = Message("assistant", text="No tool fits.")
BOTH = Message("assistant", text="Done.", calls=(ToolCall("ping", {}),))
CONFIGS = Path(__file__).parents[2] / "configs" / "reward"


def calls(*lines: str) -> str:
    return "<think> Hm. </think>\n<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


def score(function: RewardFunction, text: str, target: Message, step: int = 0, progress: float = 0.0) -> Reward:
    return function(text, parse(text), target, rollout_step=step, progress=progress)


def test_single_call_partially_right() -> None:
    text = calls('{"name": "sky", "parameters": {"city": "Oslo", "days": "2", "hour": 9}}')
    parts = score_parts(parse(text), SKY)
    # name 1; names {city, days} of {city, days, unit, hour}: 2/4; values: city alone, for "2" is not 2: 1 of 3.
    # S_acc = (1 + 0.5 + 1) / (1 + 1 + 3) = 0.5
    assert parts.metrics() == {
        "format": 1.0,
        "name": 1.0,
        "parameter_names": 0.5,
        "parameter_values": pytest.approx(1 / 3),
        "correctness": 0.5,
        "exact_match": 0.0,
    }
    assert parts.sums is not None
    assert (parts.sums.name, parts.sums.parameter_names, parts.sums.values) == (1.0, 0.5, 1.0)
    assert (parts.sums.calls, parts.sums.gold_values) == (1, 3)


@pytest.mark.parametrize(
    ("step", "total"),
    [
        # format at 1 on [-2, 2]; correctness 0.5 on [-2, 2]: 2 + 0
        (0, 2.0),
        # format [-1, 1.5], correctness [-2.5, 2.5]: 1.5 + 0
        (75, 1.5),
        # format [-1, 1], correctness [-3, 3]: 1 + 0, and no further
        (150, 1.0),
        (300, 1.0),
    ],
)
def test_schedule_of_the_total(step: int, total: float) -> None:
    text = calls('{"name": "sky", "parameters": {"city": "Oslo", "days": "2", "hour": 9}}')
    assert score(ToolCallReward(), text, SKY, step).total == pytest.approx(total, abs=1e-12)


def test_parallel_calls() -> None:
    text = calls(
        '{"name": "sky", "parameters": {"city": "Rome", "day": 1}}',
        '{"name": "ping", "parameters": {}}',
        '{"name": "wind", "parameters": {"city": "Oslo"}}',
    )
    # names {sky, sky, ping} and {sky, ping, wind} as multisets: 2 in common of 4: 0.5.
    # The predicted sky is Rome's: names 1/2, values 1; Oslo's would have names 1/2, values 0. ping: names 1.
    # S_acc = (0.5 + 1.5 + 1) / (1 + 3 + 2) = 1/2
    parts = score_parts(parse(text), PARALLEL)
    assert parts.name == 0.5
    assert parts.parameter_names == 0.5  # 1.5 of 3
    assert parts.parameter_values == 0.5  # 1 of 2
    assert parts.correctness == pytest.approx(1 / 2)
    # As sets: {sky, ping} and {sky, ping, wind}: 2/3; S_acc = (2/3 + 1.5 + 1) / 6
    assert score_parts(parse(text), PARALLEL, "set").correctness == pytest.approx((2 / 3 + 2.5) / 6)
    # Constant: format 1 and -3 + 6/2 = 0
    assert score(ToolCallReward(scaling="constant"), text, PARALLEL).total == pytest.approx(1.0)


def test_the_best_assignment_counts_in_any_order_of_the_gold_calls() -> None:
    """f(x=1, y=2) is the second gold call to the letter (2 + 1 + ...), f(x=9) has the first's only name.

    Names overlap in full, r_para = 1 + 1, r_value = 0 + 2: S_acc = (1 + 2 + 2) / (1 + 2 + 3) = 5/6.
    """
    gold = (ToolCall("f", {"x": 1}), ToolCall("f", {"x": 1, "y": 2}))
    text = calls('{"name": "f", "parameters": {"x": 1, "y": 2}}', '{"name": "f", "parameters": {"x": 9}}')
    for order in (gold, gold[::-1]):
        assert score_parts(parse(text), Message("assistant", calls=order)).correctness == pytest.approx(5 / 6)


def test_calls_of_further_blocks_count_against_a_response() -> None:
    """pay(5), then pay(5000) in a block of its own: half of the names, the call itself: (1/2 + 1 + 1) / 3 = 5/6."""
    block = '<tool_call>\n{{"name": "pay", "parameters": {{"amount": {}}}}}\n</tool_call>'
    target = Message("assistant", calls=(ToolCall("pay", {"amount": 5}),))
    parts = score_parts(parse("<think>t</think>\n" + block.format(5) + "\n" + block.format(5000)), target)
    assert parts.exact_match == 0.0 and parts.format == 0.0
    assert parts.correctness == pytest.approx(5 / 6)


PAID = '{"name": "pay", "parameters": {"to": "A", "amount": 5, "note": "x"}}'
FURTHER = PAID.replace("pay", "tell")


@pytest.mark.parametrize(
    ("text", "accuracy", "total"),
    [  # r_name + r_para + r_value, of 1 + 1 + 3; the reward is format + 6 S_acc - 3
        (calls(PAID), 5 / 5, 4.0),
        (calls(PAID.replace("5", "6")), (1 + 1 + 2) / 5, 2.8),
        (calls(PAID.replace("5", "6").replace("A", "B").replace("x", "y")), (1 + 1 + 0) / 5, 0.4),
        (calls(PAID.replace('"x"', '"x", "day": 1')), (1 + 3 / 4 + 3) / 5, 3.7),
        (calls(PAID, PAID), (1 / 2 + 1 + 3) / 5, 3.4),
        (calls(PAID, FURTHER), (1 / 2 + 1 + 3) / 5, 3.4),
        (calls(PAID) + f"\n<tool_call>\n{FURTHER}\n</tool_call>", (1 / 2 + 1 + 3) / 5, 2.4),
        (calls(), 0.0, -2.0),
    ],
)
def test_what_partial_credit_pays(text: str, accuracy: float, total: float) -> None:
    """The table of docs/method.md."""
    gold = ToolCall("pay", {"to": "A", "amount": 5, "note": "x"})
    found = score(ToolCallReward(scaling="constant"), text, Message("assistant", calls=(gold,)))
    assert found.parts.correctness == pytest.approx(accuracy) and found.total == pytest.approx(total)
    assert found.parts.exact_match == float(accuracy == 1)


def test_calls_in_another_order_are_all_right() -> None:
    text = calls(
        '{"name": "ping", "parameters": {}}',
        '{"name": "sky", "parameters": {"city": "Rome"}}',
        '{"name": "sky", "parameters": {"city": "Oslo"}}',
    )
    parts = score_parts(parse(text), PARALLEL)
    assert set(parts.metrics().values()) == {1.0}
    assert score(ToolCallReward(), text, PARALLEL, 0).total == 4.0
    assert score(ToolCallReward(), text, PARALLEL, 150).total == 4.0


def test_target_without_calls() -> None:
    answer = "<think> Hm. </think>\n<response> Nothing for that. </response>"
    call = calls('{"name": "sky", "parameters": {}}')
    default, published = ToolCallReward(), ToolCallReward(no_call="published")
    # Eq. 13 as default: 1 on [-2, 2] and format 1 on [-2, 2]; a call fails both.
    assert score(default, answer, REFUSAL).total == 4.0
    assert score(default, call, REFUSAL).total == -4.0
    # As published: format alone.
    assert score(published, answer, REFUSAL).total == 2.0
    assert score(published, call, REFUSAL).total == -2.0
    assert set(score(default, answer, REFUSAL).parts.metrics().values()) == {1.0}
    assert set(score(default, call, REFUSAL).parts.metrics().values()) == {0.0}
    # Neither called nor answered: no call was predicted, but the fields are wrong.
    assert score(default, "<think> Hm. </think>", REFUSAL).total == 2.0 - 2.0


def test_malformed_calls_score_nothing() -> None:
    good = '{"name": "ping", "parameters": {}}'
    for text in (calls(good, "{"), calls(good).removesuffix("</tool_call>"), calls(), "", good):
        assert score_parts(parse(text), BOTH).correctness == 0.0
    # The structure is there, so format still scores: 1 on [0, 1] and -3.
    only_calls = Message("assistant", calls=BOTH.calls)
    assert score(ToolCallReward(scaling="constant"), calls(good, "{"), only_calls).total == -2.0


def test_call_without_parameters() -> None:
    target = Message("assistant", calls=(ToolCall("ping", {}),))
    exact = score_parts(parse(calls('{"name": "ping", "parameters": {}}')), target)
    assert (exact.parameter_names, exact.parameter_values, exact.correctness) == (1.0, 1.0, 1.0)
    # A parameter too many: names 0 of 1. S_acc = (1 + 0) / (1 + 1)
    assert score_parts(parse(calls('{"name": "ping", "parameters": {"x": 1}}')), target).correctness == 0.5


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (calls("{}"), SKY, 1),
        ("<think></think>\n\n<tool_call>{}</tool_call>\n", SKY, 1),
        ("<tool_call>\n{}\n</tool_call>", SKY, 0),
        (calls("{}") + "<response> x </response>", SKY, 0),
        (calls("{}") + "<response> x </response>", BOTH, 1),
        ("<think></think><response>x</response><tool_call></tool_call>", BOTH, 0),
        (calls("{}"), BOTH, 0),
        (calls("{}") + calls("{}"), SKY, 0),
        (calls("{}") + " Done.", SKY, 0),
        ("Sure. " + calls("{}"), SKY, 0),
        (calls("{}").removesuffix(">"), SKY, 0),
        ("<think> x <response> x </response>", REFUSAL, 0),
        ("<think> I mention <tool_call> </think><response> x </response>", REFUSAL, 1),
    ],
)
def test_format(text: str, target: Message, expected: int) -> None:
    assert format_score(parse(text), target) == expected


def test_a_template_prefix_counts_for_format() -> None:
    text = " Hm. </think>\n<response> x </response>"
    assert format_score(parse(text), REFUSAL) == 0
    assert format_score(parse(text, prefix="<think>\n"), REFUSAL) == 1


def test_eq14_and_betas() -> None:
    text = calls('{"name": "sky", "parameters": {"city": "Oslo", "days": "2", "hour": 9}}')  # S_acc 0.5, S_fmt 1
    letter = ToolCallReward(
        scaling="eq14", beta_accuracy=3.0, beta_format=2.0, correctness_range=[0, 1], format_range=[0, 1]
    )
    # (3 * 0.5 + 2 * 1) * (1 - 0.2) = 2.8
    assert score(letter, text, SKY, progress=0.2).total == pytest.approx(2.8)
    assert letter.bounds(0, progress=0.2) == pytest.approx((0.0, 4.0))
    assert score(ToolCallReward(scaling="eq14"), text, SKY, progress=0.5).total == pytest.approx(0.5 * (1 + 0))


def test_bounds() -> None:
    assert ToolCallReward().bounds(0) == (-4.0, 4.0)
    assert ToolCallReward().bounds(75) == (-3.5, 4.0)
    assert ToolCallReward().bounds(150) == (-4.0, 4.0)
    assert ToolCallReward(scaling="constant").bounds(0) == (-3.0, 4.0)
    offset = ToolCallReward(scaling="constant", correctness_range=[1, 2], no_call="published")
    assert offset.bounds(0) == (0.0, 3.0)  # a target without calls gets 0 for correctness, below that range


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scaling": "linear"}, r"reward\.scaling: expected one of .*'scheduled'.* found 'linear'"),
        ({"no_call": "none"}, r"reward\.no_call"),
        ({"names": "list"}, r"reward\.names"),
        ({"format_range": [1, 0]}, r"reward\.format_range: expected \[low, high\]"),
        ({"beta_format": -1}, r"reward\.beta_format"),
        ({"ramps": {"low": [1, 2, 3]}}, r"reward\.ramps"),
    ],
)
def test_settings_that_mean_nothing_are_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToolCallReward(**settings)  # type: ignore[arg-type]


def test_configs_are_the_defaults() -> None:
    default = hydra.utils.instantiate(OmegaConf.load(CONFIGS / "default.yaml"))
    published = hydra.utils.instantiate(OmegaConf.load(CONFIGS / "published.yaml"))
    assert published == PublishedReward()
    text = calls('{"name": "sky", "parameters": {"city": "Oslo"}}')
    for step in (0, 75, 150, 300):
        assert default.bounds(step) == ToolCallReward().bounds(step)
        assert score(default, text, SKY, step) == score(ToolCallReward(), text, SKY, step)


def test_an_exact_match_has_full_marks_however_its_calls_are_ordered() -> None:
    """Sums that are not worked out are those that the matcher would find."""
    gold = (*PARALLEL.calls, *SKY.calls, ToolCall("sky", {"city": "Oslo", "at": [1, {"h": 2}]}))
    written = (*gold[:-1], ToolCall("sky", {"at": [1.0, {"h": 2}], "city": "Oslo"}))
    for predicted in permutations(written):
        assert accuracy_sums(predicted, gold) == accuracy_sums(predicted, gold, "set") == AccuracySums.full(gold)
    assert AccuracySums.full(gold).score == 1.0


def test_ranges_follow_the_moment_they_are_asked_for() -> None:
    reward = ToolCallReward(scaling="eq14")
    first = [reward.ranges(step, progress) for step, progress in ((0, 0.0), (0, 0.5), (1, 0.5))]
    assert [reward.ranges(step, progress) for step, progress in ((0, 0.0), (0, 0.5), (1, 0.5))] == first
    assert first[1] == first[0].weighted(0.5, 0.5) == first[2]
    assert ToolCallReward().ranges(75) != ToolCallReward().ranges(0)
