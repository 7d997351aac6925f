"""How the two scores of a response, each in [0, 1], become a reward: their ranges at a moment of training.

Every scaling is a pure function to `RewardRanges`; a score maps linearly onto its range and the reward is the sum.

Departure from the paper: Eq. 14 multiplies both scores by 1 - ν, which the group-normalised advantage (Eq. 15) cancels
up to δ. The published runs switch on another schedule, `scheduled`, which shifts weight from format to correctness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from src.errors import ConfigError

Scaling = Literal["scheduled", "eq14", "constant"]


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """What a score of 0 and a score of 1 are worth."""

    low: float
    high: float

    def at(self, score: float) -> float:
        """The value of `score` in [0, 1]: ScoreRange(-3, 3).at(0.75) is 1.5."""
        return self.low * (1.0 - score) + self.high * score

    def scaled(self, factor: float) -> ScoreRange:
        """Both ends times `factor`."""
        return ScoreRange(self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class RewardRanges:
    """The ranges of the two scores."""

    format: ScoreRange
    correctness: ScoreRange

    def weighted(self, beta_format: float, beta_accuracy: float) -> RewardRanges:
        """Ranges times their β of Eq. 14."""
        return RewardRanges(self.format.scaled(beta_format), self.correctness.scaled(beta_accuracy))


@dataclass(frozen=True, slots=True)
class Ramp:
    """A number that goes linearly from `start` to `end` within `steps` rollout steps and stays there."""

    start: float
    end: float
    steps: int

    def at(self, rollout_step: int) -> float:
        """The value at `rollout_step` (0-based)."""
        return self.start + (self.end - self.start) * min(rollout_step / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class RewardRamps:
    """The ends of both ranges as they move. The defaults are the published schedule, read off its code."""

    format_low: Ramp = Ramp(-2.0, -1.0, 75)
    format_high: Ramp = Ramp(2.0, 1.0, 150)
    correctness_low: Ramp = Ramp(-2.0, -3.0, 150)
    correctness_high: Ramp = Ramp(2.0, 3.0, 150)

    @classmethod
    def from_config(cls, ramps: Mapping[str, Sequence[float]]) -> RewardRamps:
        """From `{name: [start, end, steps]}`; a name that is not given keeps its default.

        Raises:
            ValueError: an unknown name, or a value that is not three numbers with steps >= 1.
        """
        values = {}
        for name, ramp in ramps.items():
            if name not in cls.__slots__:
                raise ConfigError(f"reward.ramps: expected keys among {list(cls.__slots__)}, found '{name}'.")
            if len(ramp) != 3 or ramp[2] < 1:
                raise ConfigError(f"reward.ramps.{name}: expected [start, end, steps >= 1], found {list(ramp)}.")
            values[name] = Ramp(float(ramp[0]), float(ramp[1]), int(ramp[2]))
        return cls(**values)


def constant(base: RewardRanges) -> RewardRanges:
    """The same ranges throughout ("no dynamic reward" in the ablation)."""
    return base


def eq14(base: RewardRanges, progress: float) -> RewardRanges:
    """Eq. 14: both ranges times 1 - ν. With ranges [0, 1] this is the equation to the letter.

    Args:
        base: the ranges at ν = 0, β included.
        progress: ν in [0, 1], the fraction of training that is done.
    """
    return base.weighted(1.0 - progress, 1.0 - progress)


def scheduled(ramps: RewardRamps, rollout_step: int) -> RewardRanges:
    """The published schedule at a rollout step.

    Format [-2, 2] → [-1, 1] and correctness [-2, 2] → [-3, 3] over 150 steps; the lower end of format takes 75.

    >>> scheduled(RewardRamps(), 75)
    RewardRanges(format=ScoreRange(low=-1.0, high=1.5), correctness=ScoreRange(low=-2.5, high=2.5))
    """
    return RewardRanges(
        ScoreRange(ramps.format_low.at(rollout_step), ramps.format_high.at(rollout_step)),
        ScoreRange(ramps.correctness_low.at(rollout_step), ramps.correctness_high.at(rollout_step)),
    )
