"""Forwards over rows: on any number of ranks, and within the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import PackedRow, pack, pack_sequences
from src.algorithm.scores import GroupScores, SetApart, sampled_scores
from src.errors import is_out_of_memory
from src.models.loading.sharding import reshard
from src.models.policy import Policy, TokenScores
from src.training.objective import Objective
from src.training.ranks import Ranks
from src.training.reference import FrozenStart
from src.training.row_plan import RowBudget, RowPlan
from src.training.sampler import Announce
from src.training.settings import OldLogprobs
from src.training.step import RolloutStep

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Attempt(NamedTuple):
    """The result of some work, or the reason why memory ran out."""

    result: Any
    reason: str | None = None


class Scorer:
    """Scores groups with the policy, in rows that get shorter when memory runs out.

    Args:
        policy: on the device that it is to run on.
        ranks: that train together; each runs as many rows as the others.
        max_row_tokens: longest row.
        announce: tells of lack of memory.

    Attributes:
        budget: the longest row, now.
    """

    def __init__(self, policy: Policy, ranks: Ranks, max_row_tokens: int, announce: Announce) -> None:
        self.policy, self._ranks, self._announce = policy, ranks, announce
        self.budget = RowBudget(max_row_tokens, separate=policy.rows == "separate")

    @property
    def device(self) -> torch.device:
        """Of the policy."""
        return next(self.policy.parameters()).device

    def score(self, groups: Sequence[PromptGroup], temperature: float, *, moments: bool = False) -> list[GroupScores]:
        """What the policy says about each group's tokens, without gradients.

        Args:
            groups: of this rank, on the device.
            temperature: divides the logits.
            moments: also the squared norms of the last layer's gradients.
        """

        @torch.no_grad()
        def work(plan: RowPlan) -> list[GroupScores]:
            scored: dict[int, GroupScores] = {}
            for indices in plan.rows:
                packed = self.pack(plan.row(indices))
                scores = self.policy(packed, temperature=temperature, last_layer="moments" if moments else None)
                scored |= by_piece(plan, indices, scores)
            return by_group(plan, scored)

        found = self.within_memory(groups, work)
        reshard(self.policy)
        return found

    def before_update(
        self,
        step: RolloutStep,
        objective: Objective,
        reference: FrozenStart | None,
        source: OldLogprobs,
        temperature: float,
        *,
        skip: bool = False,
    ) -> list[GroupScores]:
        """Score the step's last groups with the policy, and all of them with the reference if there is one.

        The groups get their log-probabilities, the step its entropies if all groups were scored. The others are scored
        by the first forward of their own update. Where no forward does that either, because `source` is `sampler`,
        their old log-probabilities are the sampler's.

        Args:
            step: its groups are on the device.
            objective: the method.
            reference: the policy's frozen start.
            source: see `score_later`.
            temperature: divides the logits.
            skip: see `score_later`.

        Returns:
            The policy's scores of the last groups, in their order.
        """
        groups = step.groups
        if objective.samples and objective.weighting.needs_moments:
            known = self.score(groups, temperature, moments=True)
            step.gradient_moments = [cast(Tensor, scores.moments) for scores in known]
        else:
            known = self.score_later(groups, step.minibatches, source, temperature, skip=skip)
        unknown = len(groups) - len(known)
        if objective.samples:
            for index in range(step.minibatches[0], unknown):
                groups[index] = replace(groups[index], old_logprobs=groups[index].rollout_logprobs)
        for index, scores in enumerate(known, unknown):
            groups[index] = replace(groups[index], old_logprobs=scores.logprobs)
        if not unknown:
            step.entropies = [scores.entropies for scores in known]
        if reference is not None:
            with reference.in_place_of(self.policy):
                frozen = self.score(groups, temperature)
            step.groups = [replace(g, ref_logprobs=s.logprobs) for g, s in zip(groups, frozen, strict=True)]
        return known

    def score_later(
        self,
        groups: Sequence[PromptGroup],
        minibatches: Sequence[int],
        source: OldLogprobs,
        temperature: float,
        *,
        skip: bool = False,
    ) -> list[GroupScores]:
        """Scores of the groups whose own update does not make them.

        Args:
            groups: of a rollout step.
            minibatches: how many groups each has.
            source: `updates.old_logprobs`, but for `auto`: `score` scores all groups, `update` all but the first
                minibatch's, and `sampler` none.
            temperature: divides the logits.
            skip: completions without an advantage get the sampler's scores, unless `source` is `score`.

        Returns:
            Of the last groups, in their order.
        """
        unscored = {"score": 0, "update": minibatches[0], "sampler": len(groups)}[source]
        parts = SetApart.of(groups[unscored:], skip and source != "score")
        return parts.merged(self.score(parts.trained, temperature), [sampled_scores(group) for group in parts.others])

    # Rows

    def pack(self, groups: Sequence[PromptGroup]) -> PackedRow:
        """The groups' row; without any, a row of two tokens, for a forward that the other ranks wait for."""
        if groups:
            return pack(groups)
        token = torch.zeros(1, dtype=torch.long, device=self.device)
        return pack_sequences([(token, token)])

    def _plan(self, groups: Sequence[PromptGroup]) -> RowPlan:
        """The groups' rows; as many on every rank, the longest first, because ranks run the n-th rows together."""
        plan = self.budget.plan(groups)
        if self._ranks.size == 1:
            return plan
        return self.budget.plan(groups, least=int(self._ranks.max(torch.tensor(len(plan.rows)))))

    def within_memory(self, groups: Sequence[PromptGroup], work: Callable[[RowPlan], T]) -> T:
        """The result of some work on the groups' rows. If memory runs out, it starts again on rows half as long.

        All ranks start again, so that they have equally many rows, and the rows stay short for the rest of the run.

        Args:
            groups: of this rank.
            work: begins by undoing what an attempt before it left, such as gradients.

        Raises:
            torch.OutOfMemoryError: no row can be divided further, or the policy is sharded: the other ranks then wait
                for this one in the middle of a row, and none can start again.
        """
        while True:
            plan = self._plan(groups)
            attempt = self._attempt(work, plan)
            failed, longest = int(attempt.reason is not None), plan.longest_divisible
            if not isinstance(self.policy, FSDPModule):
                failed, longest = self._ranks.max(torch.tensor([failed, longest])).tolist()
            if not failed:
                return cast(T, attempt.result)
            if not self.budget.shrink(longest):
                raise torch.OutOfMemoryError(
                    "out of memory with one completion in each row, the shortest there is "
                    f"({attempt.reason or 'on another rank'}). Lower sampling.max_new_tokens or "
                    "data.max_prompt_tokens, set policy.gradient_checkpointing=full, or shard it (trainer=fsdp)."
                )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "Out of memory; rows have at most %d tokens from here on. The result is the same. To have them "
                "from the start: updates.max_row_tokens=%d.",
                self.budget.max_tokens,
                self.budget.max_tokens,
            )
            self._announce("out_of_memory", where="rows", max_row_tokens=self.budget.max_tokens)

    def _attempt(self, work: Callable[[RowPlan], Any], plan: RowPlan) -> _Attempt:
        """Its result, or why memory ran out; the traceback is let go, because its frames hold the activations."""
        try:
            return _Attempt(work(plan))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if isinstance(self.policy, FSDPModule):
                smaller = max(1, min(self.budget.max_tokens, plan.longest_divisible) // 2)
                raise torch.OutOfMemoryError(
                    "out of memory in a row of a sharded policy, which cannot be tried again while other ranks "
                    f"wait for it. Resume from the last checkpoint with updates.max_row_tokens={smaller}. ({error})"
                ) from error
            return _Attempt(None, str(error))


def by_piece(plan: RowPlan, indices: Sequence[int], scores: TokenScores) -> dict[int, GroupScores]:
    """The scores of a row's pieces, by their index."""
    if not indices:
        return {}
    columns = [scores.logprobs, scores.entropies]
    if scores.last_layer is not None:
        columns.append(scores.last_layer.second_moments)
    sizes = [len(piece.token_ids) for piece in plan.row(indices)]
    parts = zip(*(column.split(sizes) for column in columns), strict=True)
    return {index: GroupScores(*part) for index, part in zip(indices, parts, strict=True)}


def by_group(plan: RowPlan, scored: Mapping[int, GroupScores]) -> list[GroupScores]:
    """The scores of each group, from those of its pieces."""
    pieces: dict[int, list[GroupScores]] = {}
    for index, owner in enumerate(plan.owners):
        pieces.setdefault(owner, []).append(scored[index])
    return [_joined(pieces[owner]) for owner in sorted(pieces)]


def _joined(parts: Sequence[GroupScores]) -> GroupScores:
    """Scores of a group's pieces, end to end."""
    if len(parts) == 1:
        return parts[0]
    moments = [part.moments for part in parts if part.moments is not None]
    return GroupScores(
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.entropies for part in parts]),
        torch.cat(moments) if moments else None,
    )
