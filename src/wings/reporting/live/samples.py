"""Logged samples as tables of dashboards: a row a completion, or a row a turn where completions are episodes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from src.protocol.dialogue import ToolCall
from src.wings.reporting.inspector.comparing import MOST_CALLS, shortened
from src.wings.reporting.inspector.rollout_records import REWARD_PARTS, LoggedCompletion, LoggedGroup
from src.wings.reporting.live.dashboards import Cell

COLUMNS = (
    *("rollout_step", "example", "completion", "prompt", "text", "gold_calls", "failure", "reward", "advantage"),
    *(*REWARD_PARTS, "regions", "finish_reason"),
)
"""Of completions."""
EPISODE_COLUMNS = (
    *("rollout_step", "example", "completion", "turn", "prompt", "observed", "text", "calls", "earned", "advantage"),
    *("regions", "failure", "ending", "turns", "rewrites", "faults", "reward"),
)
"""Of turns; then `reward/<part>` of the episode's score."""


@dataclass(frozen=True, slots=True)
class SampleTable:
    """A table of samples.

    Attributes:
        name: in the dashboard.
        columns: their headings.
        rows: of as many cells.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def sample_table(groups: Sequence[LoggedGroup]) -> SampleTable:
    """The samples of a run. What a group or an episode shares is in each row, an episode's prompt in its first."""
    completions = [(group, completion) for group in groups for completion in group.completions]
    if not any(completion.episode for _, completion in completions):
        return SampleTable("samples/completions", COLUMNS, tuple(itertools.starmap(_row, completions)))
    scores = tuple(dict.fromkeys(name for _, completion in completions for name in _scores(completion)))
    rows = (row for group, completion in completions for row in _turns(group, completion, scores))
    columns = (*EPISODE_COLUMNS, *(f"reward/{name}" for name in scores))
    return SampleTable("samples/episodes", columns, tuple(rows))


def by_region(tokens: Sequence[str], regions: Sequence[str]) -> str:
    r"""Tokens, a line for each stretch of one region; line breaks in it are written as ↵.

    >>> tokens, regions = ["<think>", " hm", "\n", "</think>"], ["format", "reasoning", "reasoning", "format"]
    >>> print(by_region(tokens, regions))
    format: <think>
    reasoning:  hm↵
    format: </think>
    """
    stretches = itertools.groupby(zip(regions, tokens, strict=True), key=lambda pair: pair[0])
    lines = ((region, "".join(token for _, token in found)) for region, found in stretches)
    return "\n".join(f"{region}: {text}".replace("\n", "↵") for region, text in lines)


def _row(group: LoggedGroup, completion: LoggedCompletion) -> tuple[Cell, ...]:
    """Of `COLUMNS`."""
    gold, failure = _calls(group.gold), group.failure(completion).value
    told = (group.rollout_step, group.example, completion.index, group.prompt, completion.text, gold, failure)
    parts = (completion.parts[name] for name in REWARD_PARTS)
    regions = by_region(completion.tokens, completion.regions)
    return (*told, completion.reward, completion.advantage, *parts, regions, completion.finish_reason)


def _turns(group: LoggedGroup, completion: LoggedCompletion, scores: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """A row a turn, of `EPISODE_COLUMNS` and these scores."""
    episode = completion.episode
    assert episode is not None  # all completions of a run are episodes, or none
    faults = ", ".join(f"{name} {count}" for name, count in episode.faults.items())
    failure, size = group.failure(completion).value, len(episode.turns)
    whole = (failure, episode.ending, size, episode.rewrites, faults, completion.reward)
    found = _scores(completion)
    for number, turn in enumerate(episode.turns, 1):
        prompt = group.prompt if number == 1 else None
        observed = "\n".join(
            f"{shortened(seen.speaker)}: {shortened(seen.text)}" for seen in turn.observed[:MOST_CALLS]
        )
        where = (group.rollout_step, group.example, completion.index, number, prompt, observed)
        regions = by_region(*(column[turn.start : turn.stop] for column in (completion.tokens, completion.regions)))
        numbers = (_calls(turn.calls), turn.earned, turn.advantage, regions)
        yield (*where, turn.text, *numbers, *whole, *(found.get(name) for name in scores))


def _scores(completion: LoggedCompletion) -> dict[str, float]:
    """What the reward of an episode is made of, by name."""
    return {name: value for name, value in completion.parts.items() if value is not None} | completion.scores


def _calls(calls: Sequence[ToolCall]) -> str:
    """A line a call, as JSON."""
    return "\n".join(json.dumps({"name": one.name, "parameters": one.parameters}, ensure_ascii=False) for one in calls)
