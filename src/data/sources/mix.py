"""A mix of corpora by counts, e.g. the published 2,000 ToolACE, 1,000 Hammer-masked and 1,000 xLAM, or by shares."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import NotRequired, TypedDict

from src.data.sources.base import Source
from src.errors import ConfigError
from src.protocol.dialogue import TurnExample

log = logging.getLogger(__name__)


class Part(TypedDict):
    """One corpus of a mix, and how many of its training examples to take or which share of the mix they are."""

    source: Source
    count: NotRequired[int | None]
    share: NotRequired[float | None]


class MixSource:
    """Samples each part's training examples without replacement; validates on everything that the parts hold out."""

    def __init__(self, parts: Mapping[str, Part], seed: int = 0, name: str = "mix") -> None:
        """Nothing is read before `load`.

        Args:
            parts: name -> `{source, count}`, or `{source, share}` for all: the mix is then as large as its shares and
                its scarcest part permit. Shares are in proportion to each other.
            seed: of the sampling. Each part is sampled by itself: a change of one leaves the others' samples alone.
            name: name of the mix.
        """
        if not parts:
            raise ConfigError("data.train.parts: expected at least one part, found none.")
        by_share = any(part.get("share") is not None for part in parts.values())
        for key, part in parts.items():
            count, share = part.get("count"), part.get("share")
            if (count is None) == (share is None) or by_share != (share is not None):
                expected = "a count for every part, or a share for every part"
                raise ConfigError(f"data.train.parts.{key}: expected {expected}, found count {count}, share {share}.")
            if count is not None and count < 1:
                raise ConfigError(f"data.train.parts.{key}.count: expected at least 1, found {count}.")
            if share is not None and share <= 0:
                raise ConfigError(f"data.train.parts.{key}: expected a share above 0, found {share}.")
        self.parts, self.seed, self.name, self.by_share = dict(parts), seed, name, by_share

    def splits(self) -> tuple[str, ...]:
        """`train`, and `val` if any part holds dialogues out."""
        return ("train", "val") if any("val" in part["source"].splits() for part in self.parts.values()) else ("train",)

    @property
    def skipped(self) -> int:
        """Bad records that the parts left out."""
        return sum(getattr(part["source"], "skipped", 0) for part in self.parts.values())

    def load(self, split: str) -> list[TurnExample]:
        """The sampled training examples part by part, or the parts' held-out examples shuffled together.

        Example ids get their part's name in front, so that they stay unique.

        Raises:
            ValueError: a part has fewer training examples than its count, or there is no such split.
        """
        if split not in self.splits():
            raise ValueError(f"source '{self.name}': expected a split of {self.splits()}, found '{split}'.")
        found = {
            key: part["source"].load(split) for key, part in self.parts.items() if split in part["source"].splits()
        }
        if split == "train":
            counts = self._counts({key: len(examples) for key, examples in found.items()})
            found = {key: self._sample(key, examples, counts[key]) for key, examples in found.items()}
            log.info("The mix takes %s.", ", ".join(f"{count} of {key}" for key, count in counts.items()))
        mixed = [replace(example, id=f"{key}/{example.id}") for key, examples in found.items() for example in examples]
        if split != "train":
            random.Random(f"{self.seed}:{split}").shuffle(mixed)
        return mixed

    def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many examples of each part to take."""
        if not self.by_share:
            return {key: part["count"] or 0 for key, part in self.parts.items()}
        shares = {key: Fraction(str(part["share"])) for key, part in self.parts.items()}
        whole = min(sizes[key] / share for key, share in shares.items())
        counts = {key: int(whole * share) for key, share in shares.items()}
        for key, count in counts.items():
            if count == 0:
                raise ConfigError(
                    f"data.train.parts.{key}: expected a share of at least one example; of a mix of "
                    f"{int(whole * sum(shares.values()))} it is none. Raise it, or give every part a count."
                )
        return counts

    def _sample(self, key: str, examples: list[TurnExample], count: int) -> list[TurnExample]:
        if len(examples) < count:
            raise ConfigError(
                f"data.train.parts.{key}.count: expected at most the {len(examples)} training examples that the "
                f"source has, found {count}. Lower the count or hold fewer dialogues out."
            )
        chosen = random.Random(f"{self.seed}:{key}").sample(range(len(examples)), count)
        return [examples[index] for index in sorted(chosen)]
