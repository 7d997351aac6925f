"""What policy or sampler say of groups' tokens, and the completions that an update leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup


class GroupScores(NamedTuple):
    """What the policy says about a group's N sampled tokens before the update; all float32 [N].

    Attributes:
        logprobs: the trainer's.
        entropies: in nats; NaN where nobody tells.
        moments: squared norms of the last layer's gradients; None unless asked for.
    """

    logprobs: Tensor
    entropies: Tensor
    moments: Tensor | None = None


def sampled_scores(group: PromptGroup) -> GroupScores:
    """The sampler's, in place of the policy's."""
    entropies = group.rollout_entropies
    return GroupScores(
        group.rollout_logprobs,
        torch.full_like(group.rollout_logprobs, math.nan) if entropies is None else entropies,
    )


class SetApart(NamedTuple):
    """Groups in two parts: completions that are trained, and those without an advantage, which are left out.

    A completion leaves whole or not at all: of one that stays all tokens are scored, since later ones depend on them.

    Attributes:
        groups: whole.
        kept: bool [G] of each, which completions are trained.
        trained: the groups with these alone; one that has none is missing.
        others: the same with the others.
    """

    groups: list[PromptGroup]
    kept: list[Tensor]
    trained: list[PromptGroup]
    others: list[PromptGroup]

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], apart: bool) -> SetApart:
        """The two parts; without `apart` everything is trained."""
        if not apart:
            return cls(list(groups), [torch.ones_like(g.lengths, dtype=torch.bool) for g in groups], list(groups), [])
        kept = [group.with_advantage for group in groups]
        pairs = list(zip(groups, kept, strict=True))
        trained = [group.chosen(mask) for group, mask in pairs if bool(mask.any())]
        return cls(list(groups), kept, trained, [group.chosen(~mask) for group, mask in pairs if not bool(mask.all())])

    def merged(self, trained: Sequence[GroupScores], others: Sequence[GroupScores]) -> list[GroupScores]:
        """Scores of the whole groups, without moments, from those of `trained` and of `others`."""
        if not self.others:
            return list(trained)
        parts = iter(trained), iter(others)
        found: list[GroupScores] = []
        for group, kept in zip(self.groups, self.kept, strict=True):
            tokens = kept.repeat_interleave(group.lengths)
            here = [next(one) for one, mask in zip(parts, (tokens, ~tokens), strict=True) if bool(mask.any())]
            order = (~tokens).int().argsort(stable=True).argsort()  # trained tokens first -> as they were sampled
            logprobs, entropies = (torch.cat([cast(Tensor, one[column]) for one in here])[order] for column in (0, 1))
            found.append(GroupScores(logprobs, entropies))
        return found
