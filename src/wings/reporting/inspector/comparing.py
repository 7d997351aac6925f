"""A completion's calls beside the gold calls, and what is wrong with it. Pure functions, which draw nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from src.protocol.dialogue import JsonValue, ToolCall
from src.protocol.matching import json_equal, match_calls
from src.protocol.types import ParsedResponse

_LONGEST_TEXT = 2000  # characters shown
MOST_CALLS = 64
"""Of an answer that are compared or shown; rewards compare all."""


class Failure(StrEnum):
    """What is wrong with a completion, the first that applies in the order of `failure_kind`."""

    CORRECT = "correct"
    TRUNCATED = "truncated"
    NO_FORMAT = "no format"
    MISSING_CALL = "missing call"
    EXTRA_CALL = "extra call"
    WRONG_NAME = "wrong name"
    WRONG_PARAMETER_NAMES = "wrong parameter names"
    WRONG_VALUES = "wrong values"
    NOT_DONE = "task not done"  # of an episode


class State(StrEnum):
    """A parameter of a predicted call beside the gold call's."""

    SAME = "same"
    DIFFERS = "differs"
    MISSING = "missing"
    EXTRA = "extra"


class ParameterRow(NamedTuple):
    """A parameter: its values as JSON, None where the call has none of that name."""

    name: str
    predicted: str | None
    gold: str | None
    state: State


@dataclass(frozen=True, slots=True)
class CallPair:
    """A predicted call and the gold call beside it.

    Attributes:
        predicted: its name; None: a gold call without one.
        gold: its name; None: a predicted call too many.
        matched: the reward compares the two; else they only stand beside each other.
        rows: the gold call's parameters in order, then those that only the prediction has.
    """

    predicted: str | None
    gold: str | None
    matched: bool
    rows: tuple[ParameterRow, ...]


def failure_kind(
    parsed: ParsedResponse, gold: Sequence[ToolCall], *, format: float, exact_match: float, finish_reason: str
) -> Failure:
    r"""What is wrong with a response.

    In this order: correct (all calls and the format), cut off, not in the output protocol, wrong calls by number, name,
    parameter names and values, and last a format that is not the target's though the calls are.

    >>> from src.protocol.formats.rest import parse
    >>> parsed = parse('<think> a </think>\n<tool_call>\n{"name": "sky", "parameters": {"city": "Rome"}}\n</tool_call>')
    >>> gold = [ToolCall("sky", {"city": "Oslo"})]
    >>> failure_kind(parsed, gold, format=1.0, exact_match=0.0, finish_reason="stop").value
    'wrong values'

    Args:
        parsed: the response.
        gold: the target's calls.
        format: S_fmt as rewarded; 1 is right.
        exact_match: 1 if the target's calls are all there and no others.
        finish_reason: `length` for one that was cut off.
    """
    if exact_match == 1 and format == 1:
        return Failure.CORRECT
    if finish_reason == "length":
        return Failure.TRUNCATED
    if exact_match == 1 or not _well_formed(parsed):
        return Failure.NO_FORMAT
    predicted = parsed.calls or ()
    wanted, found = (Counter(call.name for call in calls) for calls in (gold, predicted))
    missing, extra = wanted - found, found - wanted
    if missing and extra:
        return Failure.WRONG_NAME
    if missing:
        return Failure.MISSING_CALL
    if extra or (not gold and "tool_call" in parsed.fields):
        return Failure.EXTRA_CALL
    matches = match_calls(predicted, gold)
    if any(match.predicted is None or match.parameter_names < 1 for match in matches):
        return Failure.WRONG_PARAMETER_NAMES
    if any(match.values < len(gold[match.gold].parameters) for match in matches):
        return Failure.WRONG_VALUES
    return Failure.NO_FORMAT


def _well_formed(parsed: ParsedResponse) -> bool:
    """Whether a response is the output protocol's, if perhaps not of the target's kind."""
    fields = parsed.fields
    return (
        bool(fields)
        and len(set(fields)) == len(fields)
        and all(parsed.closed)
        and not parsed.stray
        and ("tool_call" not in fields or parsed.calls is not None)
    )


def pair_calls(predicted: Sequence[ToolCall], gold: Sequence[ToolCall]) -> list[CallPair]:
    """Gold calls in order, each beside the predicted call that the reward compares it with, then calls too many.

    A gold call that no predicted call matches stands beside a call that is left over, of its name if there is one, so
    that a wrong name shows next to the right one.

    >>> gold = [ToolCall("sky", {"city": "Oslo", "day": 1})]
    >>> (pair,) = pair_calls([ToolCall("sky", {"city": "Rome", "hour": 2})], gold)
    >>> [(row.name, row.predicted, row.gold, row.state.value) for row in pair.rows]
    [('city', '"Rome"', '"Oslo"', 'differs'), ('day', None, '1', 'missing'), ('hour', '2', None, 'extra')]
    """
    predicted, gold = predicted[:MOST_CALLS], gold[:MOST_CALLS]
    partners = {match.gold: match.predicted for match in match_calls(predicted, gold) if match.predicted is not None}
    left = [index for index in range(len(predicted)) if index not in partners.values()]
    beside: dict[int, int] = {}
    for same_name in (True, False):
        for index, call in enumerate(gold):
            if index in partners or index in beside:
                continue
            candidates = [i for i in left if not same_name or predicted[i].name == call.name]
            if candidates:
                beside[index] = candidates[0]
                left.remove(candidates[0])
    pairs = []
    for index, call in enumerate(gold):
        partner = partners.get(index, beside.get(index))
        other = None if partner is None else predicted[partner]
        pairs.append(CallPair(other.name if other else None, call.name, index in partners, _rows(other, call)))
    return pairs + [CallPair(predicted[i].name, None, False, _rows(predicted[i], None)) for i in left]


def _rows(predicted: ToolCall | None, gold: ToolCall | None) -> tuple[ParameterRow, ...]:
    found = {} if predicted is None else predicted.parameters
    wanted = {} if gold is None else gold.parameters
    rows = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if name not in found:
            state = State.MISSING
        elif name not in wanted:
            state = State.EXTRA
        else:
            state = State.SAME if json_equal(found[name], wanted[name]) else State.DIFFERS
        rows.append(
            ParameterRow(
                name,
                shown_value(found[name]) if name in found else None,
                shown_value(wanted[name]) if name in wanted else None,
                state,
            )
        )
    return tuple(rows)


def shown_value(value: JsonValue) -> str:
    """A value as JSON, `shortened`.

    >>> shown_value({"day": [1, None]})
    '{"day": [1, null]}'
    """
    try:
        return shortened(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return "… (nested too deeply to show)"


def shortened(text: str) -> str:
    """A text from outside, cut where it is endless; it says by how much.

    >>> shortened("rain"), shortened("x" * 12345)[1999:]
    ('rain', 'x… (10,345 more characters)')
    """
    left = len(text) - _LONGEST_TEXT
    return text if left <= 0 else f"{text[:_LONGEST_TEXT]}… ({left:,} more characters)"
