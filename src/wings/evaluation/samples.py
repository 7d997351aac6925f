"""Samples of a benchmark and seeded choices among them. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.errors import check_fields


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a benchmark; `data` is the benchmark's own."""

    id: str
    category: str
    data: Any


@dataclass(frozen=True, slots=True)
class Subset:
    """A seeded choice of samples, stratified by category: each keeps its share, and at least one sample.

    Attributes:
        size: samples in all.
        seed: of the choice.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields("subset", self, (("size", self.size >= 1, "at least 1"),))


def stratified(samples: Sequence[Sample], subset: Subset) -> list[Sample]:
    """A seeded subset in the order of `samples`: every category in proportion, rounded by largest remainder.

    No category is left out as long as there is room for one sample of each.

    >>> samples = [Sample(str(i), "a" if i < 6 else "b", None) for i in range(8)]
    >>> [sample.category for sample in stratified(samples, Subset(4))]
    ['a', 'a', 'a', 'b']
    """
    if subset.size >= len(samples):
        return list(samples)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.category].append(index)
    sizes = _shares({category: len(indices) for category, indices in groups.items()}, subset.size)
    kept: set[int] = set()
    for category, indices in groups.items():
        kept |= set(random.Random(f"{subset.seed}:{category}").sample(indices, sizes[category]))
    return [samples[index] for index in sorted(kept)]


def _shares(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` divided in proportion to `counts`, at least 1 each where `total` allows it."""
    everything = sum(counts.values())
    exact = {key: total * count / everything for key, count in counts.items()}
    shares = {key: int(value) for key, value in exact.items()}
    if total >= len(counts):
        shares = {key: max(1, share) for key, share in shares.items()}
    by_need = sorted(exact, key=lambda key: shares[key] - exact[key])
    while (missing := total - sum(shares.values())) > 0:
        for key in by_need[:missing]:
            shares[key] += 1
        by_need = sorted(exact, key=lambda key: shares[key] - exact[key])
    for key in sorted(exact, key=lambda key: exact[key] - shares[key]):
        while sum(shares.values()) > total and shares[key] > 1:
            shares[key] -= 1
    return shares
