"""Signs that a run is not well: counted each step, told once with advice. Adds metrics; changes nothing else.

An alarm reads the numbers of one rollout step after the other, says what it finds, and knows what to do about it.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Trainer

from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training, announce

log = logging.getLogger(__name__)

Metrics = Mapping[str, float]
Rows = list[list[float]]


class Alarm(ABC):
    """One sign.

    Args:
        name: short, for metrics and events.
        advice: what to do.

    Attributes:
        remembered: names of the attributes that it goes on with in a resumed run: numbers, strings and lists.
    """

    remembered: tuple[str, ...] = ()

    def __init__(self, name: str, advice: str) -> None:
        self.name = name
        self.advice = advice

    @abstractmethod
    def read(self, metrics: Metrics) -> str | None:
        """What is wrong after this rollout step, with numbers; None if nothing is. Called once a step, in order."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {name: getattr(self, name) for name in self.remembered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name in self.remembered:
            setattr(self, name, state[name])


class Above(Alarm):
    """A metric is over its bound. A run without the metric (supervised: groups, sampler) has no alarm.

    >>> Above("gap", "advice", "train/sampler_gap", 0.02).read({"train/sampler_gap": 0.5})
    'train/sampler_gap is 0.5, over 0.02'
    """

    def __init__(self, name: str, advice: str, key: str, bound: float) -> None:
        super().__init__(name, advice)
        self._key, self._bound = key, bound

    def read(self, metrics: Metrics) -> str | None:
        """See `Alarm.read`."""
        value = metrics.get(self._key, 0.0)
        return f"{self._key} is {value:.3g}, over {self._bound:.3g}" if value > self._bound else None


def with_row(rows: Rows, row: Sequence[float], steps: int) -> Rows:
    """The last rows with one more, at most `steps`; a row with a number that is not finite is left out.

    >>> with_row([[1.0], [2.0]], [3.0], 2), with_row([[1.0]], [math.nan], 2)
    ([[2.0], [3.0]], [[1.0]])
    """
    return [*rows, list(row)][-steps:] if all(map(math.isfinite, row)) else rows


def column_means(rows: Rows) -> list[float]:
    """Mean of each column.

    >>> column_means([[1.0, 4.0], [3.0, 4.0]])
    [2.0, 4.0]
    """
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


class Fallen(Alarm):
    """The mean of a metric over some rollout steps is below a share of its first mean, or of its highest.

    Args:
        name: see `Alarm`.
        advice: see `Alarm`.
        key: the metric.
        share: that is left at least.
        window: rollout steps of a mean.
        from_highest: compare with the highest mean so far, not with the first.
    """

    remembered = ("rows", "start")

    def __init__(
        self, name: str, advice: str, key: str, share: float, window: int, *, from_highest: bool = False
    ) -> None:
        super().__init__(name, advice)
        self._key, self._share, self._window, self._from_highest = key, share, window, from_highest
        self.rows: Rows = []
        self.start: float | None = None

    def read(self, metrics: Metrics) -> str | None:
        """See `Alarm.read`."""
        self.rows = with_row(self.rows, [metrics.get(self._key, math.nan)], self._window)
        if len(self.rows) < self._window:
            return None
        (mean,) = column_means(self.rows)
        if self.start is None or (self._from_highest and mean > self.start):
            self.start = mean
        if mean >= self._share * self.start:
            return None
        return f"{self._key} fell to {mean:.3g} from {self.start:.3g}, below {self._share:.3g} of it"


class FormatWithoutCorrectness(Alarm):
    """Since correctness was best, it fell and format rose: the policy earns its reward by the look of its answers.

    Args:
        rise: of reward/format, least.
        fall: of reward/correctness, least.
        window: rollout steps that both are means of.
    """

    remembered = ("rows", "best")

    def __init__(self, rise: float, fall: float, window: int) -> None:
        super().__init__(
            "format_without_correctness",
            "the policy learns the format and forgets the task: look at rollouts.jsonl, give correctness more of the "
            "reward (configs/reward), or lower optimizer.learning_rate",
        )
        self._rise, self._fall, self._window = rise, fall, window
        self.rows: Rows = []
        self.best: list[float] | None = None  # format and correctness when this was highest

    def read(self, metrics: Metrics) -> str | None:
        """See `Alarm.read`."""
        row = [metrics.get(f"reward/{key}", math.nan) for key in ("format", "correctness")]
        self.rows = with_row(self.rows, row, self._window)
        if len(self.rows) < self._window:
            return None
        look, sense = column_means(self.rows)
        if self.best is None or sense >= self.best[1]:
            self.best = [look, sense]
        look_then, sense_then = self.best
        if look < look_then + self._rise or sense > sense_then - self._fall:
            return None
        return (
            f"reward/format rose from {look_then:.3g} to {look:.3g} while reward/correctness fell from "
            f"{sense_then:.3g} to {sense:.3g}"
        )


class MissingRegion(Alarm):
    """A region has had no token at all for the run's first `patience` rollout steps (`callbacks.region_entropy`).

    Args:
        regions: labels of those that are expected.
        patience: in rollout steps.
    """

    remembered = ("missing", "steps")

    def __init__(self, regions: Sequence[str], patience: int) -> None:
        super().__init__(
            "missing_region",
            "fine if the corpus never asks for it; otherwise look at rollouts.jsonl: does the prompt show the output "
            "protocol's tags, and does the policy write them? A warm start (warm_start=sft) teaches them",
        )
        self.missing = list(regions)
        self._patience = patience
        self.steps = 0

    def read(self, metrics: Metrics) -> str | None:
        """See `Alarm.read`."""
        shares = {region: metrics.get(f"token_share/{region}") for region in self.missing}
        if None in shares.values():  # nobody counts
            return None
        self.missing = [region for region in self.missing if not shares[region]]
        self.steps += 1
        if not self.missing or self.steps < self._patience:
            return None
        return f"no token in region {', '.join(self.missing)} in {self.steps} rollout steps"


class Health(RolloutCallback):
    """Reads every rollout step's metrics with some alarms.

    The first time in a run that one finds something, it is a warning and an event `alarm`; `health/<alarm>_steps`
    counts the rollout steps on which it does. A loss or gradient that is not finite is no alarm: the module skips its
    optimizer step (`training.step_guard`).

    Args:
        max_zero_variance: share of groups whose rewards are all equal, which teach nothing.
        max_sampler_gap: mean |sampler's - trainer's log-probability| in nats; 0.02 is large even for bf16.
        max_truncated: share of completions cut at `sampling.max_new_tokens`.
        min_entropy: share of the start's entropy that is left, both means over 5 rollout steps.
        min_calls: share of the most completions with a call that is left, both means over 5 rollout steps.
        format_rise: of reward/format since reward/correctness was best, together with
        correctness_fall: of the latter, both means over 10 rollout steps.
        region_patience: rollout steps in which every region of an answer is expected to appear.
    """

    def __init__(
        self,
        max_zero_variance: float = 0.9,
        max_sampler_gap: float = 0.02,
        max_truncated: float = 0.3,
        min_entropy: float = 0.1,
        min_calls: float = 0.2,
        format_rise: float = 0.02,
        correctness_fall: float = 0.1,
        region_patience: int = 20,
    ) -> None:
        self._alarms: list[Alarm] = [
            Above(
                "zero_variance",
                "most groups have equal rewards and teach nothing: raise sampling.temperature or sampling.n, choose "
                "prompts of middling difficulty, or set algorithm.resample_rounds",
                "group/zero_variance",
                max_zero_variance,
            ),
            Above(
                "sampler_gap",
                "sampler and trainer disagree about log-probabilities: check that the engine got the last weights and "
                "runs in the trainer's precision, or set algorithm.loss.importance_cap",
                "train/sampler_gap",
                max_sampler_gap,
            ),
            Above(
                "truncated",
                "many completions are cut: raise sampling.max_new_tokens, or the policy rambles",
                "response/truncated",
                max_truncated,
            ),
            Fallen(
                "entropy_collapse",
                "the policy stops exploring: raise sampling.temperature or algorithm.loss.clip_high, add "
                "algorithm.loss.entropy_coef, or lower optimizer.learning_rate",
                "train/entropy",
                min_entropy,
                window=5,
            ),
            Fallen(
                "fewer_calls",
                "the policy stops calling tools: look at rollouts.jsonl, and at whether answers without a call earn as "
                "much as those with one",
                "response/with_call",
                min_calls,
                window=5,
                from_highest=True,
            ),
            FormatWithoutCorrectness(format_rise, correctness_fall, window=10),
            MissingRegion([region.label for region in Region if region is not Region.OTHER], region_patience),
        ]
        self._counts = {alarm.name: 0 for alarm in self._alarms}

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Read, count, tell."""
        for alarm in self._alarms:
            found = alarm.read(step.metrics)
            if found is None:
                continue
            if not self._counts[alarm.name]:
                log.warning("Rollout step %d: %s: %s.", step.index, found, alarm.advice)
                told = {"alarm": alarm.name, "found": found, "advice": alarm.advice}
                announce(trainer, "alarm", rollout_step=step.index, **told)
            self._counts[alarm.name] += 1
        step.metrics |= {f"health/{name}_steps": float(count) for name, count in self._counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """The counts, and what each alarm remembers."""
        return {"counts": dict(self._counts), "alarms": {alarm.name: alarm.state_dict() for alarm in self._alarms}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue; an alarm that the checkpoint does not know starts anew."""
        self._counts |= state_dict.get("counts", {})
        for alarm in self._alarms:
            if alarm.name in state_dict.get("alarms", {}):
                alarm.load_state_dict(state_dict["alarms"][alarm.name])
