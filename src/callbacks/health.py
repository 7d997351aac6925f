"""Signs that a run is not well: logged each step, warned of once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lightning import Trainer

from src.callbacks.base import RolloutCallback, RolloutStep

if TYPE_CHECKING:
    from src.models.policy_module import PolicyModule

log = logging.getLogger(__name__)


class Health(RolloutCallback):
    """Warns, once for each sign, when a metric of a rollout step passes its bound; counts the steps that do.

    A loss or gradient that is not finite is no warning: the module stops the run (`NonFiniteError`).

    Args:
        max_zero_variance: share of groups whose rewards are all equal, which teach nothing.
        max_sampler_gap: mean |sampler's - trainer's log-probability| in nats; 0.02 is large even for bf16.
        max_truncated: share of completions cut at `sampling.max_new_tokens`.
    """

    def __init__(
        self, max_zero_variance: float = 0.9, max_sampler_gap: float = 0.02, max_truncated: float = 0.3
    ) -> None:
        self._signs = {
            "group/zero_variance": (
                max_zero_variance,
                "most groups have equal rewards: raise sampling.temperature or sampling.n, or choose prompts of "
                "middling difficulty",
            ),
            "train/sampler_gap": (
                max_sampler_gap,
                "sampler and trainer disagree about log-probabilities: check that the engine got the last weights and "
                "runs in the trainer's precision, or set algorithm.loss.importance_cap",
            ),
            "response/truncated": (
                max_truncated,
                "many completions are cut: raise sampling.max_new_tokens, or the policy rambles",
            ),
        }
        self._counts = dict.fromkeys(self._signs, 0)

    def on_rollout_step_end(self, trainer: Trainer, module: PolicyModule, step: RolloutStep) -> None:
        """Compare, count, warn."""
        for key, (bound, advice) in self._signs.items():
            if step.metrics.get(key, 0.0) <= bound:  # supervised training has neither groups nor a sampler
                continue
            if not self._counts[key]:
                log.warning(
                    "Rollout step %d: %s is %.3g, over %.3g: %s.", step.index, key, step.metrics[key], bound, advice
                )
            self._counts[key] += 1
        step.metrics |= {f"health/{key.split('/')[1]}_steps": float(count) for key, count in self._counts.items()}

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return dict(self._counts)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue counting."""
        self._counts |= state_dict
