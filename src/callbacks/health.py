"""Signs that a run is not well: counted each step, told once with advice. Adds metrics; changes nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning import Trainer

from src.callbacks.alarms import Above, Alarm, EntropyCollapse, FormatWithoutCorrectness, MissingRegion
from src.protocol.types import Region
from src.training.step import RolloutCallback, RolloutStep, Training, announce

log = logging.getLogger(__name__)


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
            EntropyCollapse(min_entropy, window=5),
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
