"""Whether an engine computes with the trainer's weights: log-probabilities of one prompt, compared after every update.

An engine of its own may take new weights wrongly without an error: a tied head left out, a shard mixed up, an update
that was skipped. The version that it stamps says that it was told; the probe says that it listened.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.rollout.engine import Completion, SamplingParams

EXACT_TOLERANCE = 1e-4
_TOLERANCE = {torch.float32: EXACT_TOLERANCE, torch.float64: EXACT_TOLERANCE}
_HALF_TOLERANCE = 0.25


class EngineMismatchError(RuntimeError):
    """The engine's log-probabilities are not those of the policy that is trained."""


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


def check_gap(gap: float, rollout_step: int, dtype: torch.dtype, tolerance: float | None = None) -> None:
    """Stop if engine and trainer disagree.

    Args:
        gap: largest |engine - trainer| log-probability of the probe's tokens, in nats.
        rollout_step: rollout steps done.
        dtype: of the trainer's forwards.
        tolerance: largest gap to accept; None: 1e-4 in float32 (4e-6 was measured), 0.25 in half precision (0.02 on
            the tiny policy; it grows with depth. A forgotten head gives 0.5 and more).

    Raises:
        EngineMismatchError: the gap is larger, or not a number.
    """
    limit = _TOLERANCE.get(dtype, _HALF_TOLERANCE) if tolerance is None else tolerance
    if not gap <= limit:
        raise EngineMismatchError(
            f"rollout step {rollout_step}: the rollout engine's log-probabilities differ from the trainer's by up to "
            f"{gap:.2e}, expected at most {limit:.0e} ({dtype}). It samples from other weights than those that are "
            "trained. Look at: whether all weights arrive (a tied lm_head must be among them), whether the engine runs "
            "in the trainer's type (rollout dtype, trainer.precision), and its kernels. If the gap is rounding alone, "
            "raise updates.probe_tolerance."
        )
