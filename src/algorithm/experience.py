"""The carrier of a rollout step: one prompt with its G completions, as flat ragged vectors.

A completion is one answer, or an episode: answers, and between them what the policy observed. Only sampled tokens have
log-probabilities, regions and weights; observed ones stand in the `Tree` alone, as inputs. Nothing here computes; it
splits, moves and checks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

_OF_TOKENS = (
    *("token_ids", "rollout_logprobs", "regions", "weights"),
    *("old_logprobs", "ref_logprobs", "credit", "rollout_entropies"),
)
_OF_COMPLETIONS = ("rewards", "advantages")


@dataclass(frozen=True, slots=True)
class Tree:
    """What follows a prompt, as M runs of S tokens: each follows the prompt or an earlier run of its completion.

    An episode whose ids were only appended is one run. Where its history was rewritten, what both histories share, the
    rest of the old one and the new one are runs of their own. Runs are in depth-first order.

    Attributes:
        token_ids: int64 [S].
        sampled: bool [S], which are the policy's own: the N tokens of the group, in its order.
        sizes: int64 [M], tokens of each run, each >= 1. The last token of a run that nothing follows is sampled.
        parents: int64 [M], the run that each follows; -1: the prompt.
        completions: int64 [M], ascending, the completion of each run.
    """

    token_ids: Tensor
    sampled: Tensor
    sizes: Tensor
    parents: Tensor
    completions: Tensor

    def to(self, device: torch.device) -> Tree:
        """The same tree on another device."""
        return Tree(*(getattr(self, f.name).to(device) for f in fields(self)))

    def chosen(self, kept: Tensor) -> Tree:
        """The runs of some completions, bool [G], which are counted from 0 on. No run belongs to two completions."""
        runs = kept[self.completions]
        tokens = runs.repeat_interleave(self.sizes)
        places = runs.cumsum(0) - 1
        parents = self.parents[runs]
        return Tree(
            self.token_ids[tokens],
            self.sampled[tokens],
            self.sizes[runs],
            torch.where(parents < 0, parents, places[parents]),
            (kept.cumsum(0) - 1)[self.completions[runs]],
        )


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt, its G completions, and what was computed about them. N = sum of `lengths`.

    Attributes:
        prompt_ids: int64 [P].
        token_ids: int64 [N], sampled ids of completion 0, then 1, …
        lengths: int64 [G], sampled tokens of each completion, each >= 1.
        rollout_logprobs: float32 [N], the sampler's.
        regions: int64 [N], `protocol.types.Region` of each sampled token.
        rewards: float32 [G].
        advantages: float32 [G].
        weights: float32 [N], token weights of the loss.
        old_logprobs: float32 [N], the trainer's before this step's updates; None until computed.
        ref_logprobs: float32 [N], the frozen start's; None unless a KL penalty wants them.
        credit: float32 [N], advantage of each sampled token where those of a completion differ; None: its completion's.
        rollout_entropies: float32 [N], the sampler's, in nats; None: it does not tell.
        tree: where the sampled tokens stand among observed ones; None: there are no others.
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
    credit: Tensor | None = None
    rollout_entropies: Tensor | None = None
    tree: Tree | None = None

    def __post_init__(self) -> None:
        n, g = int(self.lengths.sum()), len(self.lengths)
        for name in _OF_TOKENS:
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise ValueError(f"PromptGroup.{name}: expected shape ({n},), found {tuple(value.shape)}.")
        for name in _OF_COMPLETIONS:
            if getattr(self, name).shape != (g,):
                raise ValueError(
                    f"PromptGroup.{name}: expected shape ({g},), found {tuple(getattr(self, name).shape)}."
                )

    @property
    def token_advantages(self) -> Tensor:
        """float32 [N], the advantage that each sampled token is trained with."""
        return self.advantages.repeat_interleave(self.lengths) if self.credit is None else self.credit

    @property
    def sequence_ids(self) -> Tensor:
        """int64 [N], the completion that each token belongs to: lengths [2, 3] -> [0, 0, 1, 1, 1]."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)

    @property
    def with_advantage(self) -> Tensor:
        """Bool [G], the completions of which some token has an advantage that is not 0."""
        found = torch.zeros_like(self.lengths, dtype=torch.bool)
        found[self.sequence_ids[self.token_advantages != 0]] = True
        return found

    def chosen(self, kept: Tensor) -> PromptGroup:
        """The group with some of its completions, bool [G], in their order."""
        if bool(kept.all()):
            return self
        tokens = kept.repeat_interleave(self.lengths)
        cut = {name: value[tokens] for name in _OF_TOKENS if (value := getattr(self, name)) is not None}
        cut |= {name: getattr(self, name)[kept] for name in ("lengths", *_OF_COMPLETIONS)}
        return replace(self, **cut, tree=None if self.tree is None else self.tree.chosen(kept))

    def to(self, device: torch.device) -> PromptGroup:
        """The same group on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if v is not None})
