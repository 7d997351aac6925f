"""Predicted calls against gold calls: the one matcher that rewards and metrics share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from src.protocol.dialogue import JsonValue, Message, ToolCall
from src.protocol.types import ParsedResponse

_ROUNDING = 1e-9
_MOST_EXACT = 10  # gold calls of one tool; with more, pairs are found greedily
_SCALARS = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class CallMatch:
    """A gold call and the predicted call that it was compared with.

    Attributes:
        gold: index of the gold call.
        predicted: index of the predicted call, or None where no unused call of that name scores above 0.
        parameter_names: overlap of the parameters' names, intersection over union, in [0, 1].
        values: how many gold parameters have an equal predicted value.
    """

    gold: int
    predicted: int | None
    parameter_names: float
    values: int

    @property
    def score(self) -> float:
        """This call's share of Eq. 11-12."""
        return self.parameter_names + self.values


def json_equal(a: JsonValue, b: JsonValue) -> bool:
    """Whether two values are the same JSON.

    As JSON has them: true is not 1, but 1 and 1.0 are one number; the order of an object's keys does not count, that
    of a list's items does; strings are compared exactly.

    >>> json_equal({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}), json_equal(True, 1), json_equal("1", 1)
    (True, False, False)
    """
    if type(a) is type(b) and type(a) in _SCALARS:
        return bool(a == b)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return len(a) == len(b) and all(key in b and json_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(json_equal, a, b))
    return bool(a == b)


def overlap(a: Iterable[str], b: Iterable[str]) -> float:
    """Intersection over union of two multisets of names; 1 if both are empty.

    >>> overlap(["f", "f"], ["f"]), overlap(["x", "y"], ["y", "z"]), overlap([], [])
    (0.5, 0.3333333333333333, 1.0)
    """
    unmatched: dict[str, int] = {}  # collections.Counter does the same in four times the time
    left = right = shared = 0
    for name in a:
        unmatched[name] = unmatched.get(name, 0) + 1
        left += 1
    for name in b:
        right += 1
        if unmatched.get(name):
            unmatched[name] -= 1
            shared += 1
    union = left + right - shared
    return shared / union if union else 1.0


def match_calls(predicted: Sequence[ToolCall], gold: Sequence[ToolCall]) -> list[CallMatch]:
    """Pair each gold call with a predicted call of the same name, so that the scores add up to most.

    In order, each takes its best unused prediction; ties go to the earlier one, and a call that scores 0 is left for
    others. Where another assignment has a higher sum, it counts instead, so that the order of calls does not matter.

    >>> gold = [ToolCall("sky", {"city": "Oslo"}), ToolCall("sky", {"city": "Rome", "day": 1})]
    >>> predicted = [ToolCall("sky", {"city": "Rome"}), ToolCall("sky", {"city": "Oslo"})]
    >>> [(match.predicted, match.parameter_names, match.values) for match in match_calls(predicted, gold)]
    [(1, 1.0, 1), (0, 0.5, 1)]
    """
    by_name: dict[str, list[int]] = {}
    for index, call in enumerate(predicted):
        by_name.setdefault(call.name, []).append(index)
    rows: dict[str, list[list[CallMatch]]] = {}
    for index, call in enumerate(gold):
        candidates = by_name.get(call.name, ())
        rows.setdefault(call.name, []).append([_compare(other, predicted[other], index, call) for other in candidates])
    found = {match.gold: match for table in rows.values() for match in _assigned(table)}
    return [found.get(index) or CallMatch(index, None, 0.0, 0) for index in range(len(gold))]


def _assigned(table: Sequence[Sequence[CallMatch]]) -> list[CallMatch]:
    """The pairs that score above 0, at most one a row and a predicted call; see `match_calls`."""
    taken: set[int | None] = set()
    greedy: list[CallMatch] = []
    for row in table:
        best = max((match for match in row if match.predicted not in taken), key=_score, default=None)
        if best is not None and best.score > 0:
            taken.add(best.predicted)
            greedy.append(best)
    total = sum(map(_score, greedy))
    if total >= sum(max(map(_score, row), default=0.0) for row in table) - _ROUNDING:
        return greedy  # no assignment has more
    pairs = _best_pairs(table) if len(table) <= _MOST_EXACT else greedy
    return pairs if sum(map(_score, pairs)) > total + _ROUNDING else greedy


def _best_pairs(table: Sequence[Sequence[CallMatch]]) -> list[CallMatch]:
    """The pairs whose scores add up to most, exactly; takes time in proportion to 2^rows, rows and columns.

    For each set of gold calls, as bits, the best pairs of them with the predicted calls so far.
    """
    best: dict[int, tuple[float, list[CallMatch]]] = {0: (0.0, [])}
    for column in zip(*table, strict=True):
        for paired, (total, pairs) in list(best.items()):
            for row, match in enumerate(column):
                with_row = paired | 1 << row
                found = total + match.score
                if with_row != paired and match.score > 0 and found > best.get(with_row, (0.0,))[0]:
                    best[with_row] = found, [*pairs, match]
    return max(best.values(), key=lambda one: one[0])[1]


def _score(match: CallMatch) -> float:
    return match.score


def same_calls(predicted: Sequence[ToolCall], gold: Sequence[ToolCall]) -> bool:
    """Whether the two hold the same calls, in any order, each as often."""
    if len(predicted) != len(gold):
        return False
    rest = list(predicted)
    for call in gold:
        for index, other in enumerate(rest):
            if other.name == call.name and json_equal(call.parameters, other.parameters):
                del rest[index]
                break
        else:
            return False
    return True


def is_exact_match(parsed: ParsedResponse, target: Message) -> bool:
    """Exact match of the whole target's calls, the headline metric.

    A target without calls is met by a response that is not blank and no tool_call field at all. The wording of a
    response never counts.
    """
    if target.calls:
        return parsed.calls is not None and same_calls(parsed.calls, target.calls)
    return "tool_call" not in parsed.fields and bool(parsed.response and parsed.response.strip())


def _compare(index: int, predicted: ToolCall, gold_index: int, gold: ToolCall) -> CallMatch:
    found = predicted.parameters
    values = sum(name in found and json_equal(value, found[name]) for name, value in gold.parameters.items())
    return CallMatch(gold_index, index, overlap(gold.parameters, found), values)
