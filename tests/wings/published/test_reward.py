"""The published scoring: on numbers worked out by hand, and against the published rules written down in `scoring`."""

from __future__ import annotations

import random
import re

import pytest

from src.config.policy_checks import check_template
from src.errors import ConfigError
from src.models.loading.loading import PolicyConfig, load_tokenizer
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse, step_text
from src.rewards.tool_call import Reward, RewardFunction, ToolCallReward
from src.wings.published.reward import PublishedReward, rest_format, toolrl_format
from tests.configs.test_experiments import NATIVE_TEMPLATE
from tests.conftest import ROOT, train_config
from tests.fuzzing import base_texts, mutated_texts
from tests.wings.published.scoring import published_total

SKY = Message("assistant", calls=(ToolCall("sky", {"city": "Oslo", "days": 1}),))
REFUSAL = Message("assistant", text="No tool fits.")
BOTH = Message("assistant", text="Done.", calls=(ToolCall("ping", {}),))
THOUGHT = Message("assistant", thought="Hm.")
EXACT = '{"name": "sky", "parameters": {"city": "Oslo", "days": 1}}'


def calls(*lines: str, thought: str = " Hm. ") -> str:
    return f"<think>{thought}</think>\n<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


def score(function: RewardFunction, text: str, target: Message, step: int = 0) -> Reward:
    return function(text, parse(text), target, rollout_step=step)


@pytest.mark.parametrize(
    ("step", "exact", "half", "silent"),
    [
        # half: name 1, names {city} of {city, days} 1/2, value 1: 2.5 of 1 + 1 + 2 = 4, that is 0.625 of the range.
        # format high + correctness high; high + low + 0.625 * width; format low + correctness low
        (0, 2 + 2, 2 + (-2 + 0.625 * 4), -2 - 2),
        (75, 1.5 + 2.5, 1.5 + (-2.5 + 0.625 * 5), -1 - 2.5),
        (150, 1 + 3, 1 + (-3 + 0.625 * 6), -1 - 3),
        (300, 1 + 3, 1 + (-3 + 0.625 * 6), -1 - 3),
    ],
)
def test_schedule(step: int, exact: float, half: float, silent: float) -> None:
    reward = PublishedReward()
    assert score(reward, calls(EXACT), SKY, step).total == exact
    assert score(reward, calls('{"name": "sky", "parameters": {"city": "Oslo"}}'), SKY, step).total == half
    assert score(reward, "", SKY, step).total == silent


def test_without_the_schedule() -> None:
    reward = PublishedReward(scheduled=False)
    assert score(reward, calls(EXACT), SKY).total == 4.0
    assert score(reward, "", SKY).total == -3.0
    assert reward.bounds(0) == (-3.0, 4.0)


def test_a_target_without_calls_has_a_format_reward_alone() -> None:
    answer = "<think> Hm. </think>\n<response> No. </response>"
    assert [score(PublishedReward(), answer, REFUSAL, step).total for step in (0, 75, 150)] == [2.0, 1.5, 1.0]
    assert score(PublishedReward(), calls(EXACT), REFUSAL).total == -2.0
    assert score(PublishedReward(), answer, REFUSAL).parts.exact_match == 1.0


def test_calls_in_another_order_carry_the_published_rounding() -> None:
    """Equal in order: the top of the range. In another order: (high - low) * 8 / 8 + low, here with the same result."""
    target = Message("assistant", calls=(*SKY.calls, ToolCall("ping", {"x": 1})))
    ping = '{"name": "ping", "parameters": {"x": 1}}'
    assert score(PublishedReward(), calls(EXACT, ping), target, 150).total == 4.0
    assert score(PublishedReward(), calls(ping, EXACT), target, 150).total == 4.0


@pytest.mark.parametrize(
    ("line", "published", "default"),
    [
        # Python's equality: true is 1. Ours: 1 + 1 + 1 of 4.
        ('{"name": "sky", "parameters": {"city": "Oslo", "days": true}}', 4, 3),
        # A key twice: the last counts. Ours: not a call.
        ('{"name": "sky", "parameters": {"city": "Rome", "city": "Oslo", "days": 1}}', 4, 0),
        # A further key: scored all the same. Ours: not a call.
        ('{"name": "sky", "parameters": {"city": "Oslo", "days": 1}, "id": 7}', 4, 0),
        # NaN: taken as a value that equals nothing. Ours: not a call.
        ('{"name": "sky", "parameters": {"city": "Oslo", "days": NaN}}', 3, 0),
        # A blank line fails the published block and not ours.
        (EXACT + "\n\n" + EXACT, 0, None),
        # Not calls for either.
        ('{"name": ["sky"], "parameters": {}}', 0, 0),
        ('{"name": "sky", "parameters": ["city"]}', 0, 0),
        ('{"name": "sky"}', 0, 0),
        ('"sky"', 0, 0),
        ('{"name": "sky", "parameters": ' + "[" * 100_000, 0, 0),
    ],
    ids=lambda value: str(value)[:50],
)
def test_where_the_published_matching_differs(line: str, published: int, default: int | None) -> None:
    """Numerators of Eq. 13 out of 4."""
    assert score(PublishedReward(), calls(line), SKY).parts.correctness == published / 4
    if default is not None:
        assert score(ToolCallReward(), calls(line), SKY).parts.correctness == default / 4


def test_calls_mentioned_in_a_thought_are_the_ones_that_count() -> None:
    thought = '<tool_call> {"name": "wind", "parameters": {}} </tool_call>'
    text = calls(EXACT, thought=thought)
    assert score(PublishedReward(), text, SKY).total == -4.0  # no name right, and two call tags
    assert score(ToolCallReward(), text, SKY).total == 4.0


@pytest.mark.parametrize(
    ("text", "target", "rest", "toolrl"),
    [
        (calls(EXACT), SKY, True, True),
        (calls(EXACT) + "\n<response> x </response>", SKY, False, False),
        (calls(EXACT) + "\n<response> x </response>", BOTH, True, True),
        ("<think></think>\n<response></response>", REFUSAL, True, True),
        # White space and words around the fields
        ("<think></think><response></response>", REFUSAL, True, False),
        ("Well. <think></think> so <response></response> there", REFUSAL, True, False),
        ("<think></think>\n<tool_call>{}</tool_call>", SKY, True, False),
        ("<think></think>\n<tool_call>\n</tool_call>", SKY, True, False),
        ("<think></think>\n<tool_call>\n\n</tool_call>", SKY, True, True),
        # Tags in a thought
        ("<think> <response> </think>\n<response> x </response>", REFUSAL, False, False),
        ("<think> <tool_call> </think>\n<response> x </response>", REFUSAL, True, True),
        ("<think> </think> </think>\n<response> x </response>", REFUSAL, True, True),
        # An earlier call hides in ToolRL's thought
        ("<think> a </think>\n<tool_call> </tool_call></think>\n<response> x </response>", REFUSAL, True, True),
        # Missing, twice, out of order
        ("<response> x </response>", REFUSAL, False, False),
        ("<think></think>\n<response> x </response>\n<response> x </response>", REFUSAL, False, False),
        ("<response> x </response>\n<think></think>", REFUSAL, False, False),
        ("</think><think>\n<response> x </response>", REFUSAL, False, False),
        (calls(EXACT), BOTH, False, False),
        ("", SKY, False, False),
    ],
)
def test_format_rules(text: str, target: Message, rest: bool, toolrl: bool) -> None:
    assert rest_format(text, target) is rest
    assert toolrl_format(text, target) is toolrl


def test_the_rest_rule_on_mutated_texts() -> None:
    """First appearances of all tags in order, call and response tags once, no response tag beside calls alone."""
    targets = (Message("assistant", calls=(ToolCall("f", {}),)), Message("assistant", "Hi."))
    kept = 0
    for text in mutated_texts(2000, seed=11):
        for target, names in zip(targets, (("think", "tool_call"), ("think", "response")), strict=True):
            tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
            positions = [text.find(tag) for tag in tags]
            good = positions[0] >= 0 and sorted(set(positions)) == positions
            good = good and all(text.count(tag) == 1 for tag in tags[2:])
            good = good and ("response" in names or not ("<response>" in text or "</response>" in text))
            assert rest_format(text, target) is good
            kept += good
    assert kept > 200


@pytest.mark.parametrize(
    ("text", "rest", "toolrl"),
    [
        ("<think> Hm. </think>", 1, 1),
        ("<think></think>", 1, 1),
        ("</think> Hm. <think>", 1, 0),
        ("Well. <think> Hm. </think>\n<response> No. </response>", 1, 0),
        ("<think> Hm. </think> </think>", 0, 1),
        ("<think> <think> Hm. </think>", 0, 1),
        ("<think>", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_target_of_a_thought_alone(text: str, rest: int, toolrl: int) -> None:
    """The paper's repository counts the two tags, ToolRL wants them at both ends; correctness is worth nothing."""
    assert score(PublishedReward(scheduled=False), text, THOUGHT).total == rest
    assert score(PublishedReward(format_rule="toolrl", scheduled=False), text, THOUGHT).total == toolrl


def test_tags_in_a_targets_thought_count_as_its_own() -> None:
    """`<response>` asks for a response too; quoted calls are the gold ones; a quoted tag alone ends the published code.

    Correctness is 1 of 4 for the name of the other call, as its parameters are others: -3 + 6 / 4.
    """
    reward = PublishedReward(scheduled=False)
    asks = Message("assistant", thought="No <response> yet.", calls=SKY.calls)
    assert [score(reward, calls(EXACT) + end, asks).total for end in ("", "\n<response></response>")] == [3.0, 4.0]
    quotes = Message("assistant", thought=f"<tool_call>{EXACT}</tool_call>", calls=(ToolCall("sky", {}),))
    assert score(reward, calls(EXACT), quotes).total == 4.0
    assert score(reward, calls('{"name": "sky", "parameters": {}}'), quotes).total == -3 + 6 / 4 + 1
    tag = Message("assistant", thought="A <tool_call> it is.", calls=SKY.calls)
    assert score(reward, calls(EXACT), tag).total == 4.0
    refusal = Message("assistant", thought="No <tool_call> here.", text="No.")
    assert score(reward, "<think></think>\n<response></response>", refusal).total == 1.0


def targets(generator: random.Random) -> list[Message]:
    """Targets of all kinds, as they are and read from mutated texts; about a quarter of them a thought alone."""
    bases = base_texts()[:60]
    found = []
    for parsed in map(parse, (*bases, *mutated_texts(1000, seed=3, bases=bases))):
        message = Message("assistant", parsed.response or "", parsed.thought or "", parsed.calls or ())
        if generator.random() < 0.2:
            message = Message("assistant", thought=message.thought)
        elif not message.calls and not message.text:
            continue
        found.append(message)
    return found


def rearranged(text: str, generator: random.Random) -> str:
    """The text with fields, tags or lines dropped, doubled and swapped, or with a blank line put in."""
    parts = re.split(r"(</?(?:think|tool_call|response)>|\n)", text)
    for _ in range(generator.choice((0, 0, 1, 2))):
        at, other = generator.randrange(len(parts)), generator.randrange(len(parts))
        kind = generator.randrange(4)
        if kind == 0:
            parts[at] = ""
        elif kind == 1:
            parts[at] *= 2
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at] += "\n\n"
    return "".join(parts)


def test_equal_to_the_published_rules_on_mutated_targets() -> None:
    """20,000 responses made from the texts of 550 targets, under each rule, with and without the schedule."""
    generator = random.Random(5)
    known = targets(generator)
    compared = thoughts = high = 0
    for index in range(20_000):
        target = generator.choice(known)
        gold = step_text(target)
        (text,) = mutated_texts(1, seed=index, bases=(rearranged(gold, generator),))
        step = generator.randrange(200)
        parsed = parse(text)
        for rule in ("rest", "toolrl"):
            scheduled = generator.random() < 0.5
            reward = PublishedReward(format_rule=rule, scheduled=scheduled)
            found = reward(text, parsed, target, rollout_step=step).total
            try:
                expected = published_total(text, gold, step=step, rule=rule, scheduled=scheduled)
            except (ValueError, IndexError):
                continue  # the target's text ends the published code
            assert found == expected, (rule, scheduled, step, target, text)
            compared += 1
            thoughts += not target.calls and not target.text
            high += found == reward.bounds(step)[1]
    assert compared > 36_000
    assert thoughts > compared / 10
    assert high > 1_000  # full marks


def test_a_response_is_read_within_its_turn() -> None:
    text = f"so\n<|im_start|>assistant\n{calls(EXACT)}<|im_end|>\n more"
    assert score(PublishedReward(), text, SKY).total == 4.0
    llama = PublishedReward(turn_start="<|start_header_id|>assistant<|end_header_id|>", turn_end="<|eot_id|>")
    assert score(llama, calls(EXACT) + "<|eot_id|>", SKY).total == 4.0


def test_bounds_and_settings() -> None:
    assert [PublishedReward().bounds(step) for step in (0, 75, 150)] == [(-4.0, 4.0), (-3.5, 4.0), (-4.0, 4.0)]
    with pytest.raises(ValueError, match=r"reward\.format_rule: expected one of .* found 'loose'"):
        PublishedReward(format_rule="loose")  # type: ignore[arg-type]


def test_it_is_refused_where_the_policy_writes_another_format(tmp_path):
    tokenizer = load_tokenizer(PolicyConfig(path=ROOT / "src/models/tiny"))
    check_template(train_config(tmp_path, "reward=published"), tokenizer)
    tokenizer.chat_template = NATIVE_TEMPLATE
    check_template(train_config(tmp_path, "prompt.layout=native"), tokenizer)
    with pytest.raises(ConfigError, match=r"PublishedReward reads the format rest, prompt\.layout=native has hermes"):
        check_template(train_config(tmp_path, "prompt.layout=native", "reward=published"), tokenizer)
