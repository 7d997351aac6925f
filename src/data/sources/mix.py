"""A mix of corpora by counts, e.g. the published 2,000 ToolACE, 1,000 Hammer-masked and 1,000 xLAM examples."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict

from src.data.sources.base import Source
from src.errors import ConfigError
from src.protocol.dialogue import TurnExample


class Part(TypedDict):
    """One corpus of a mix and how many of its training examples to take."""

    source: Source
    count: int


class MixSource:
    """Samples each part's training examples without replacement; validates on everything that the parts hold out."""

    def __init__(self, parts: Mapping[str, Part], seed: int = 0, name: str = "mix") -> None:
        """Nothing is read before `load`.

        Args:
            parts: name -> `{source, count}`.
            seed: of the sampling. Each part is sampled by itself: a change of one leaves the others' samples alone.
            name: name of the mix.
        """
        if not parts:
            raise ConfigError("data.train.parts: expected at least one part, found none.")
        for key, part in parts.items():
            if part["count"] < 1:
                raise ConfigError(f"data.train.parts.{key}.count: expected at least 1, found {part['count']}.")
        self.parts, self.seed, self.name = dict(parts), seed, name

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
        mixed: list[TurnExample] = []
        for key, part in self.parts.items():
            if split in part["source"].splits():
                mixed += self._take(key, part, split)
        if split != "train":
            random.Random(f"{self.seed}:{split}").shuffle(mixed)
        return mixed

    def _take(self, key: str, part: Part, split: str) -> list[TurnExample]:
        examples = part["source"].load(split)
        if split == "train":
            if len(examples) < part["count"]:
                raise ConfigError(
                    f"data.train.parts.{key}.count: expected at most the {len(examples)} training examples that the "
                    f"source has, found {part['count']}. Lower the count or hold fewer dialogues out."
                )
            chosen = random.Random(f"{self.seed}:{key}").sample(range(len(examples)), part["count"])
            examples = [examples[index] for index in sorted(chosen)]
        return [replace(example, id=f"{key}/{example.id}") for example in examples]
