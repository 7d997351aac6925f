"""The scoring of ToolRL (8cee13e) and of the ResT runs (d6c29b5), `verl/utils/reward_score/rlla.py`, in plain rules.

Written from what both do, as the reference that `src.wings.published.reward` is compared with: it takes the target's
text, and adds and multiplies in the published order. `gold` that their code cannot read raises here too. Their code
itself, run outside of this repository, gave the same rewards for 357,506 mutated responses, to the last bit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any


def published_total(text: str, gold: str, *, step: int, rule: str, scheduled: bool) -> float:
    """The reward of a response to a target text at a rollout step; `rule` is `rest` or `toolrl`."""
    text = text.split("<|im_start|>assistant")[-1].split("<|im_end|>")[0].strip()
    low, high, worst, best = 0.0, 1.0, -3.0, 3.0
    if scheduled:
        high = max(2 - (2 - high) * step / 150, 1.0)
        low = min(-2 + (2 + low) * step / 150, -1.0)
        best = min((best - 2) * step / 150 + 2, 3.0)
        worst = max((worst + 2) * step / 150 - 2, -3.0)
    well_formed = (_rest if rule == "rest" else _toolrl)(text, "<tool_call>" in gold, "<response>" in gold)
    correctness = _correctness(text, gold, worst, best) if "<tool_call>" in gold else 0.0
    return (high if well_formed else low) + correctness


def _rest(text: str, calls: bool, response: bool) -> bool:
    if not calls and not response:
        return text.count("<think>") == 1 and text.count("</think>") == 1
    tags = ["<tool_call>", "</tool_call>"] * calls + ["<response>", "</response>"] * response
    firsts = [text.find(tag) for tag in ("<think>", "</think>", *tags)]
    in_order = firsts[0] >= 0 and all(a < b for a, b in pairwise(firsts))
    silent = response or not any(tag in text for tag in ("<response>", "</response>"))
    return in_order and silent and all(text.count(tag) == 1 for tag in tags)


def _toolrl(text: str, calls: bool, response: bool) -> bool:
    blocks = [r"\n<tool_call>\n.*?\n</tool_call>"] * calls + [r"\n<response>.*?</response>"] * response
    tags = ["<tool_call>", "</tool_call>"] * calls + ["<response>", "</response>"] * response
    once = all(text.count(tag) == 1 for tag in tags)
    return once and re.search(f"^<think>.*?</think>{''.join(blocks)}$", text, re.DOTALL) is not None


def _correctness(text: str, gold: str, worst: float, best: float) -> float:
    expected = _lines(gold)
    try:
        if "</tool_call>" not in text:
            return worst
        return _similarity(expected, _lines(text), worst, best)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return worst


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("<tool_call>")[1].split("</tool_call>")[0].strip().split("\n")]


def _similarity(gold: list[Any], predicted: list[Any], worst: float, best: float) -> float:
    if gold == predicted:
        return best
    score = _overlap([call["name"] for call in gold], [call["name"] for call in predicted])
    possible = 1.0
    used: set[int] = set()
    for call in gold:
        parameters = call["parameters"]
        possible += 1.0 + len(parameters)
        top, top_index = 0.0, None
        for index, other in enumerate(predicted):
            if index in used or other["name"] != call["name"]:
                continue
            found = other["parameters"]
            equal = sum(1.0 for key, value in parameters.items() if key in found and found[key] == value)
            similar = _overlap(list(parameters), list(found.keys())) + equal
            if similar > top:
                top, top_index = similar, index
        if top_index is not None:
            used.add(top_index)
            score += top
    return (best - worst) * score / possible + worst


def _overlap(a: list[Any], b: list[Any]) -> float:
    if a == b:
        return 1.0
    shared = (Counter(a) & Counter(b)).total()
    return shared / (len(a) + len(b) - shared)
