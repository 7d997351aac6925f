"""Prompt groups as compact JSON for a page. No text of a model becomes markup: the page writes it with `for_script`.

The inverse is `decode` in `assets/decode.js`; both know these forms:

- Texts are lists of indices into `lines`, tokens into `tokens`: tables that all groups share.
- A column of numbers is null (not logged), `{"v": [values], "c": "codes"}` where it has few values, a code a token; a
  list of hundred-thousandths where all have at most five digits behind the point; otherwise `{"f": [values]}`. Each
  gives back the very numbers that were logged; what is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from src.protocol.types import Region
from src.wings.reporting.inspector.comparing import (
    MOST_CALLS,
    CallPair,
    Failure,
    State,
    pair_calls,
    shortened,
    shown_value,
)
from src.wings.reporting.inspector.episode_records import LoggedEpisode, LoggedTurn
from src.wings.reporting.inspector.rollout_records import COLUMNS, REWARD_PARTS, LoggedCompletion, LoggedGroup

JsonObject = dict[str, Any]

CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_UNIT = 100_000
_LABELS = [region.label for region in Region]
_DIGITS = {label: str(index) for index, label in enumerate(_LABELS)}
_STATES = list(State)
_FAILURES = list(Failure)


class Encoder:
    """Encodes groups; what they share is in its tables, string to number.

    Attributes:
        tokens: texts of tokens.
        lines: of prompts, targets and messages.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.lines: dict[str, int] = {}

    def group(self, run: int, group: LoggedGroup) -> JsonObject:
        """A group of run number `run`; equal comparisons with the gold calls are stored once."""
        comparisons: list[list[Any]] = []
        completions = []
        for completion in group.completions:
            pairs = (
                [] if completion.episode else list(map(_pair, pair_calls(completion.parsed.calls or (), group.gold)))
            )
            if pairs not in comparisons:
                comparisons.append(pairs)
            kind = _FAILURES.index(group.failure(completion))
            completions.append(self._completion(completion, kind, comparisons.index(pairs)))
        return {
            "run": run,
            "step": group.rollout_step,
            "example": group.example,
            "source": group.source,
            "prompt": None if group.prompt is None else self._text(group.prompt),
            "target": self._text(group.target),
            "comparisons": comparisons,
            "completions": completions,
        }

    def _text(self, text: str) -> list[int]:
        return _numbered(text.split("\n"), self.lines)

    def _completion(self, completion: LoggedCompletion, kind: int, comparison: int) -> JsonObject:
        encoded: JsonObject = {
            "index": completion.index,
            "kind": kind,
            "finish": completion.finish_reason,
            "reward": _finite(completion.reward),
            "advantage": _finite(completion.advantage),
            "parts": [_finite(completion.parts[name]) for name in REWARD_PARTS],
            "comparison": comparison,
            "tokens": _numbered(completion.tokens, self.tokens),
            "regions": "".join(map(_DIGITS.__getitem__, completion.regions)),
            **{name: column for name in COLUMNS if (column := encode_numbers(completion.columns[name])) is not None},
        }
        if completion.scores:
            encoded["scores"] = {name: _finite(value) for name, value in completion.scores.items()}
        if completion.episode is not None:
            encoded["episode"] = self._episode(completion.episode, completion.tokens)
        elif _reads_otherwise(completion.text, completion.tokens):
            encoded["text"] = self._text(completion.text)
        return encoded

    def _episode(self, episode: LoggedEpisode, tokens: Sequence[str]) -> JsonObject:
        return {
            "ending": episode.ending,
            "rewrites": episode.rewrites,
            "faults": dict(episode.faults),
            "turns": [self._turn(turn, tokens[turn.start : turn.stop]) for turn in episode.turns],
        }

    def _turn(self, turn: LoggedTurn, tokens: Sequence[str]) -> JsonObject:
        """A turn; of what is outside the policy's tokens no more than a page can hold."""
        encoded: JsonObject = {
            "size": len(tokens),
            "earned": _finite(turn.earned),
            "advantage": _finite(turn.advantage),
            "observed": [
                [shortened(seen.speaker), self._text(shortened(seen.text))] for seen in turn.observed[:MOST_CALLS]
            ],
            "unseen": max(0, len(turn.observed) - MOST_CALLS),
            "calls": [[shortened(call.name), shown_value(call.parameters)] for call in turn.calls[:MOST_CALLS]],
            "uncalled": max(0, len(turn.calls) - MOST_CALLS),
        }
        if _reads_otherwise(turn.text, tokens):
            encoded["text"] = self._text(turn.text)
        return encoded


def _numbered(strings: Sequence[str], table: dict[str, int]) -> list[int]:
    """The number of each string; new ones join the table."""
    return [table.setdefault(string, len(table)) for string in strings]


def _reads_otherwise(text: str, tokens: Sequence[str]) -> bool:
    """Whether an answer has a prefix, or tokens that share characters."""
    return not "".join(tokens).startswith(text)


def names() -> JsonObject:
    """What the numbers in an encoded group stand for."""
    return {
        "codes": CODES,
        "unit": _UNIT,
        "regions": _LABELS,
        "kinds": _FAILURES,
        "states": _STATES,
        "parts": list(REWARD_PARTS),
    }


def encode_numbers(values: list[float] | None) -> Any:
    """A column in the shortest of the module's forms.

    >>> encode_numbers([0.5, 2.0, 0.5]), encode_numbers(None)
    ({'v': [0.5, 2.0], 'c': 'ABA'}, None)
    >>> encode_numbers([index / 1000 for index in range(70)])[-1], encode_numbers([1e-7 * i for i in range(70)])["f"][1]
    (6900, 1e-07)
    """
    if values is None:
        return None
    distinct = dict.fromkeys(values)
    if len(distinct) <= len(CODES) and len(distinct) * 4 <= len(values) + 8:
        code = dict(zip(distinct, CODES, strict=False))
        return {"v": list(map(_finite, distinct)), "c": "".join(map(code.__getitem__, values))}
    if all(map(math.isfinite, distinct)):
        scaled = list(map(round, [value * _UNIT for value in values]))
        if [whole / _UNIT for whole in scaled] == values:
            return scaled
    return {"f": list(map(_finite, values))}


def _pair(pair: CallPair) -> list[Any]:
    rows = [[row.name, row.predicted, row.gold, _STATES.index(row.state)] for row in pair.rows]
    return [pair.predicted, pair.gold, int(pair.matched), rows]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
