"""Which prompt groups a page shows: evenly over the rollout steps of each run, within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

from src.wings.reporting.inspector.rollout_records import GroupPlace

FEWEST = 2
"""Groups of a run that are always shown: the first and the last."""


def evenly(total: int, keep: int) -> list[int]:
    """`keep` of the indices 0 to total - 1, evenly spread, with the first and the last; all where there are no more.

    >>> evenly(9, 3), evenly(10, 4), evenly(3, 5), evenly(1, 2)
    ([0, 4, 8], [0, 3, 6, 9], [0, 1, 2], [0])
    """
    keep = min(total, max(keep, FEWEST))
    return [round(index * (total - 1) / max(keep - 1, 1)) for index in range(keep)]


def most_groups(runs: Sequence[Sequence[GroupPlace]], budget: int, share: float) -> int:
    """How many groups a run can show if all runs show as many as they have, up to that number.

    Args:
        runs: the groups of each run, in order.
        budget: bytes for all of them.
        share: bytes of a page that a byte of `rollouts.jsonl` is expected to take.

    Returns:
        At least `FEWEST`, at most the groups of the largest run.

    >>> places = [GroupPlace(step, "a/0", 100 * step, 100 * step + 100, step) for step in range(10)]
    >>> most_groups([places], 200, 0.5), most_groups([places, places[:3]], 350, 0.5), most_groups([places], 1, 0.5)
    (4, 4, 2)
    """
    low, high = FEWEST, max([FEWEST, *map(len, runs)])
    while low < high:
        keep = (low + high + 1) // 2
        if share * sum(sizes(chosen(places, keep)) for places in runs) <= budget:
            low = keep
        else:
            high = keep - 1
    return low


def chosen(places: Sequence[GroupPlace], keep: int) -> list[GroupPlace]:
    """`keep` groups of a run, evenly."""
    return [places[index] for index in evenly(len(places), keep)]


def sizes(places: Sequence[GroupPlace]) -> int:
    """Bytes of these groups in their file."""
    return sum(place.stop - place.start for place in places)
