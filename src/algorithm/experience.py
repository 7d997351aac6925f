"""The carrier of a rollout step: one prompt with its G completions, as flat ragged vectors.

Nothing here computes; it splits, moves and checks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt, its G completions, and what was computed about them. N = sum of `lengths`.

    Attributes:
        prompt_ids: int64 [P].
        token_ids: int64 [N], sampled ids of completion 0, then 1, …
        lengths: int64 [G], tokens of each completion, each >= 1.
        rollout_logprobs: float32 [N], the sampler's.
        regions: int64 [N], `protocol.types.Region` of each sampled token.
        rewards: float32 [G].
        advantages: float32 [G].
        weights: float32 [N], token weights of the loss.
        old_logprobs: float32 [N], the trainer's before this step's updates; None until computed.
        ref_logprobs: float32 [N], the frozen start's; None unless a KL penalty wants them.
    """

    prompt_ids: Tensor
    token_ids: Tensor
    lengths: Tensor
    rollout_logprobs: Tensor
    regions: Tensor
    rewards: Tensor
    advantages: Tensor
    weights: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        n, g = int(self.lengths.sum()), len(self.lengths)
        for name in ("token_ids", "rollout_logprobs", "regions", "weights", "old_logprobs", "ref_logprobs"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise ValueError(f"PromptGroup.{name}: expected shape ({n},), found {tuple(value.shape)}.")
        for name in ("rewards", "advantages"):
            if getattr(self, name).shape != (g,):
                raise ValueError(
                    f"PromptGroup.{name}: expected shape ({g},), found {tuple(getattr(self, name).shape)}."
                )

    @property
    def sequence_ids(self) -> Tensor:
        """int64 [N], the completion that each token belongs to: lengths [2, 3] -> [0, 0, 1, 1, 1]."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)

    def to(self, device: torch.device) -> PromptGroup:
        """The same group on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if v is not None})
