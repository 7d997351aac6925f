"""The scoring of the published ResT runs and of ToolRL, from which it comes, to the last digit.

It works on the raw text, and so differs from `tool_call` (each point was checked by running both):

- Calls are what stands after the first `<tool_call>` anywhere, even inside a thought, up to the next closing tag. A
  blank line fails the block; a call may have further keys; a key that comes twice and NaN are taken.
- Values are equal as Python has it: true is 1.
- A target without calls has no correctness reward: 0, not the middle of the range.
- `format_rule: rest` asks only for the order of each tag's first appearance and for single call and response tags, so
  that text between fields passes and a thought that mentions a tag fails; `toolrl` wants exact line breaks around the
  tags and nothing else between the fields.
- The kind of a target is given by the tags anywhere in its text, so that a thought which mentions one changes it, and
  its calls are read like a response's. Where that ends the published code, as a thought says `<tool_call>` without
  calls after it, the target counts as what it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

from src.errors import ConfigError
from src.protocol.dialogue import Message
from src.protocol.formats.rest import step_text
from src.protocol.matching import is_exact_match, overlap
from src.protocol.types import ParsedResponse
from src.rewards.scaling import RewardRanges, ScoreRange
from src.rewards.tool_call import AccuracySums, Reward, RewardParts, expected_fields

FormatRule = Literal["rest", "toolrl"]

_UNREADABLE = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
"""What reading calls that are none raises."""


@dataclass(frozen=True, slots=True)
class PublishedReward:
    """The published reward; the same call as `ToolCallReward`.

    Attributes:
        format_rule: `rest` (the paper's repository) or `toolrl`.
        scheduled: move the ranges with the rollout step, as the published runs do. Otherwise format is in {0, 1} and
            correctness in [-3, 3].
        turn_start: what begins an assistant turn in the model's chat template; a response is read after its last one.
        turn_end: what ends a turn; a response is read up to it.
    """

    format_rule: FormatRule = "rest"
    scheduled: bool = True
    turn_start: str = "<|im_start|>assistant"
    turn_end: str = "<|im_end|>"
    full_marks: ClassVar[bool] = True
    output_format: ClassVar[str] = "rest"

    def __post_init__(self) -> None:
        if self.format_rule not in get_args(FormatRule):
            raise ConfigError(
                f"reward.format_rule: expected one of {get_args(FormatRule)}, found {self.format_rule!r}."
            )

    def __call__(
        self, text: str, parsed: ParsedResponse, target: Message, *, rollout_step: int, progress: float = 0.0
    ) -> Reward:
        """Score a response by its raw text; `parsed` serves the exact match alone, `progress` nothing."""
        text = text.split(self.turn_start)[-1].split(self.turn_end)[0].strip()
        ranges = self.ranges(rollout_step)
        rule = rest_format if self.format_rule == "rest" else toolrl_format
        well_formed = rule(text, target)
        format_reward = ranges.format.high if well_formed else ranges.format.low
        exact = is_exact_match(parsed, target)
        published = published_sums(text, target)
        if published is None:
            silent = float("tool_call" not in parsed.fields)
            parts = RewardParts(float(well_formed), silent, silent, silent, silent, float(exact))
            return Reward(format_reward, parts)
        sums = published.sums
        low, high = ranges.correctness.low, ranges.correctness.high
        # The order of these operations is the published one, so that the result is the same to the last bit.
        correctness = (high - low) * published.total / (1.0 + sums.calls + sums.gold_values) + low
        total = (high if published.identical else correctness) + format_reward
        return Reward(total, RewardParts.build(float(well_formed), sums, exact))

    def ranges(self, rollout_step: int) -> RewardRanges:
        """What the scores are worth at a rollout step, in the published code's arithmetic."""
        if not self.scheduled:
            return RewardRanges(ScoreRange(0.0, 1.0), ScoreRange(-3.0, 3.0))
        return _scheduled_ranges(rollout_step)

    def bounds(self, rollout_step: int, progress: float = 0.0) -> tuple[float, float]:
        """The lowest and highest total at this step, up to the rounding of the published arithmetic."""
        ranges = self.ranges(rollout_step)
        return ranges.format.low + ranges.correctness.low, ranges.format.high + ranges.correctness.high


@lru_cache(maxsize=1)  # all responses of a rollout step are scored at one moment
def _scheduled_ranges(rollout_step: int) -> RewardRanges:
    return RewardRanges(
        ScoreRange(min(-1.0, -2 + 2.0 * rollout_step / 150), max(1.0, 2 - 1.0 * rollout_step / 150)),
        ScoreRange(max(-3.0, -1.0 * rollout_step / 150 - 2), min(3.0, 1.0 * rollout_step / 150 + 2)),
    )


def read_target(target: Message) -> tuple[tuple[str, ...], list[Any]]:
    """The fields that a response must have, and the gold calls, both as the published code reads them off the text."""
    gold = step_text(target)
    fields = ("think", *(name for name in ("tool_call", "response") if f"<{name}>" in gold))
    try:
        return fields, _published_calls(gold) if "tool_call" in fields else []
    except _UNREADABLE:  # ends the published code
        return expected_fields(target), [{"name": call.name, "parameters": call.parameters} for call in target.calls]


def rest_format(text: str, target: Message) -> bool:
    """The paper's repository: first appearances of all the target's tags in order; call and response tags once each.

    A target with calls alone allows no response tag; one with a thought alone wants its tags once each, in any order.
    """
    fields, _ = read_target(target)
    if fields == ("think",):
        return text.count("<think>") == text.count("</think>") == 1
    position = -1
    for name in fields:
        for tag in (f"<{name}>", f"</{name}>"):
            found = text.find(tag)
            if found <= position or (name != "think" and text.find(tag, found + 1) >= 0):
                return False
            position = found
    return "response" in fields or not ("<response>" in text or "</response>" in text)


def toolrl_format(text: str, target: Message) -> bool:
    r"""ToolRL: the fields on their own lines, calls on lines between their tags, nothing before, between or after.

    The thought is whatever comes before the first `</think>\n` that the next field's tag follows, so it may hold tags
    of its own, but no call or response tag of a kind that the target has.
    """
    fields, _ = read_target(target)
    if not text.startswith("<think>") or any(text.count(tag) != 1 for n in fields[1:] for tag in (f"<{n}>", f"</{n}>")):
        return False
    # Each expected tag is there once, so the fields can only be where these borders are, in this order and apart.
    inner = {"think": "", "tool_call": "\n", "response": ""}
    borders = [f"{inner[a]}</{a}>\n<{b}>{inner[b]}" for a, b in pairwise(fields)]
    position = len("<think>")
    for border in borders:
        found = text.find(border, position)
        if found < 0:
            return False
        position = found + len(border)
    ending = f"{inner[fields[-1]]}</{fields[-1]}>"
    return text.endswith(ending) and len(text) - len(ending) >= position


@dataclass(frozen=True, slots=True)
class PublishedSums:
    """What the published code makes of the calls.

    Attributes:
        sums: numerator and denominator of Eq. 13.
        total: the numerator, added up in the published order.
        identical: the calls equal the target's, in order; these get the top of the range without arithmetic.
    """

    sums: AccuracySums
    total: float
    identical: bool


def published_sums(text: str, target: Message) -> PublishedSums | None:
    """r_name, r_para and r_value as the published code has them; all 0 where it cannot compare the calls.

    None for a target without calls.
    """
    _, gold = read_target(target)
    if not gold:
        return None
    name, gold_values, identical = 0.0, 0, False
    matches: list[tuple[float, float]] = []
    try:
        predicted = _published_calls(text)
        identical = predicted == gold
        gold_values = sum(len(call["parameters"]) for call in gold)
        name = overlap([call["name"] for call in gold], [call["name"] for call in predicted])
        matches = _published_matches(predicted, gold)
    except _UNREADABLE:
        name, matches = 0.0, []
    total = name
    for overlapping, equal in matches:
        total += overlapping + equal
    sums = AccuracySums(
        name=name,
        parameter_names=sum(overlapping for overlapping, _ in matches),
        values=sum(equal for _, equal in matches),
        calls=len(gold),
        gold_values=gold_values,
    )
    return PublishedSums(sums, total, identical)


def _published_calls(text: str) -> list[Any]:
    if "</tool_call>" not in text:
        raise ValueError("no closing tag")
    block = text.split("<tool_call>")[1].split("</tool_call>")[0]
    return [json.loads(line) for line in block.strip().split("\n")]


def _published_matches(predicted: Sequence[Any], gold: Sequence[Any]) -> list[tuple[float, float]]:
    """Overlap of parameter names and number of equal values of each gold call with its best unused prediction."""
    unused = list(range(len(predicted)))
    matches = []
    for call in gold:
        best, best_index = (0.0, 0.0), -1
        for index in unused:
            if predicted[index]["name"] != call["name"]:
                continue
            expected, found = call["parameters"], predicted[index]["parameters"]
            equal = sum(1.0 for key, value in expected.items() if key in found and found[key] == value)
            score = overlap(expected, found.keys()), equal
            if sum(score) > sum(best):
                best, best_index = score, index
        if best_index >= 0:
            unused.remove(best_index)
        matches.append(best)
    return matches
