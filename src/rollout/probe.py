"""Whether an engine computes with the trainer's weights: log-probabilities of one prompt, compared after every update.

An engine of its own may take new weights wrongly without an error: a tied head left out, a shard mixed up, an update
that was skipped. The version that it stamps says that it was told; the probe says that it listened. Wrong weights move
most tokens; rounding in half precision moves a few, where two tokens are nearly as likely. So the mean has a narrow
limit and the largest difference a wide one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.rollout.engine import Completion, SamplingParams

EXACT_TOLERANCE = 1e-4


class EngineMismatchError(RuntimeError):
    """The engine's log-probabilities are not those of the policy that is trained."""


class Gap(NamedTuple):
    """|engine - trainer| log-probability of the probe's tokens, in nats: the mean, and the largest."""

    mean: float
    largest: float

    def within(self, limits: Gap) -> bool:
        """Whether both are at most their limits; a gap that is not a number is not."""
        return self.mean <= limits.mean and self.largest <= limits.largest


_EXACT, _HALF = Gap(EXACT_TOLERANCE, EXACT_TOLERANCE), Gap(0.1, 1.0)


def gap_limits(dtype: torch.dtype, mean: float | None = None, largest: float | None = None) -> Gap:
    """The gap to accept.

    Args:
        dtype: of the trainer's forwards.
        mean: in place of the type's limit, 1e-4 in float32 (4e-6 was measured, of the largest) and 0.1 in half
            precision.
        largest: likewise, 1e-4 and 1.
    """
    usual = _EXACT if dtype in (torch.float32, torch.float64) else _HALF
    return Gap(usual.mean if mean is None else mean, usual.largest if largest is None else largest)


def probe_params(sampling: SamplingParams, tokens: int) -> SamplingParams:
    """Greedy, one completion of at most `tokens` tokens."""
    longest = min(tokens, sampling.max_new_tokens)
    return replace(sampling, n=1, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=longest)


def probe_group(prompt: Tensor, completion: Completion) -> PromptGroup:
    """A completion of a prompt [P] in the trainer's form; regions, rewards and weights say nothing."""
    tokens = len(completion.token_ids)
    return PromptGroup(
        prompt_ids=prompt,
        token_ids=completion.token_ids,
        lengths=torch.tensor([tokens]),
        rollout_logprobs=completion.logprobs,
        regions=torch.zeros(tokens, dtype=torch.long),
        rewards=torch.zeros(1),
        advantages=torch.zeros(1),
        weights=torch.ones(tokens),
    )


def check_gap(gap: Gap, limits: Gap, rollout_step: int, dtype: torch.dtype) -> None:
    """Stop if engine and trainer disagree.

    Args:
        gap: that was found after the weights were handed over twice.
        limits: see `gap_limits`.
        rollout_step: rollout steps done.
        dtype: of the trainer's forwards.

    Raises:
        EngineMismatchError: the gap is larger, or not a number.
    """
    if not gap.within(limits):
        raise EngineMismatchError(
            f"rollout step {rollout_step}: the rollout engine's log-probabilities differ from the trainer's by "
            f"{gap.mean:.2e} nats on average and by up to {gap.largest:.2e}, also after a second hand-over of the "
            f"weights; expected at most {limits.mean:g} and {limits.largest:g} ({dtype}). It samples from other "
            "weights than those that are trained. Look at: whether all weights arrive (a tied lm_head must be among "
            "them), whether the engine runs in the trainer's type (rollout dtype, trainer.precision), and its kernels. "
            "If the gap is rounding alone, raise updates.probe_mean_tolerance or updates.probe_tolerance."
        )
