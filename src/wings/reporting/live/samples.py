"""Sampled completions as rows of a table, for dashboards. Pure: what a group is comes from `inspector.records`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from src.wings.reporting.inspector.rollout_records import REWARD_PARTS, LoggedCompletion, LoggedGroup

COLUMNS = (
    *("rollout_step", "example", "completion", "prompt", "text", "gold_calls", "failure", "reward", "advantage"),
    *(*REWARD_PARTS, "regions", "finish_reason"),
)
"""Of `rows`."""


def rows(groups: Sequence[LoggedGroup]) -> list[tuple[str | float | None, ...]]:
    """A row a completion, of `COLUMNS`; what a group shares is in each of its rows."""
    found = []
    for group in groups:
        calls = ({"name": call.name, "parameters": call.parameters} for call in group.gold)
        gold = "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
        for completion in group.completions:
            failure = group.failure(completion).value
            told = (group.rollout_step, group.example, completion.index, group.prompt, completion.text, gold, failure)
            parts = (completion.parts[name] for name in REWARD_PARTS)
            numbers = (completion.reward, completion.advantage, *parts)
            found.append((*told, *numbers, by_region(completion), completion.finish_reason))
    return found


def by_region(completion: LoggedCompletion) -> str:
    r"""A completion's tokens, a line for each stretch of one region; line breaks in it are written as ↵.

    >>> tokens, regions = ["<think>", " hm", "\n", "</think>"], ["format", "reasoning", "reasoning", "format"]
    >>> print(by_region(LoggedCompletion(0, "", 0.0, 0.0, {}, "stop", tokens, regions, {})))
    format: <think>
    reasoning:  hm↵
    format: </think>
    """
    stretches = itertools.groupby(zip(completion.regions, completion.tokens, strict=True), key=lambda pair: pair[0])
    lines = ((region, "".join(token for _, token in found)) for region, found in stretches)
    return "\n".join(f"{region}: {text}".replace("\n", "↵") for region, text in lines)
