"""Forwards over packed rows: on any number of ranks, and within the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.distributed.fsdp import FSDPModule

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import PackedRow, pack, pack_sequences
from src.models.loading.sharding import reshard
from src.models.policy import TokenScores
from src.training.row_plan import RowBudget, RowPlan
from src.training.sampling_module import GroupScores, SamplingModule
from src.training.step import announce

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Attempt(NamedTuple):
    """What came of some work; a reason instead of a result where memory ran out."""

    result: Any
    reason: str | None = None


class ScoringModule(SamplingModule):
    """A module that scores groups with its policy, in rows that get shorter when memory runs out; see `SamplingModule`.

    Attributes:
        row_budget: the longest packed row.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row_budget = RowBudget(self.update.max_row_tokens)

    @property
    def temperature(self) -> float:
        """What the sampler divided its logits by; greedy sampling reports unscaled log-probabilities."""
        return self.sampling.temperature or 1.0

    # Rows

    def _plan(self, groups: Sequence[PromptGroup]) -> RowPlan:
        """The groups' rows; as many on every rank, the last of which may be empty."""
        plan = self.row_budget.plan(groups)
        if self.trainer.world_size == 1:
            return plan
        needed = int(self._max_over_ranks(torch.tensor(len(plan.rows), device=self.device)))
        return replace(plan, rows=plan.rows + [[]] * (needed - len(plan.rows)))

    def _pack(self, groups: Sequence[PromptGroup]) -> PackedRow:
        """The groups' row; without any, two tokens, for a forward that the other ranks wait for."""
        if groups:
            return pack(groups)
        token = torch.zeros(1, dtype=torch.long, device=self.device)
        return pack_sequences([(token, token)])

    def _within_memory(self, groups: Sequence[PromptGroup], work: Callable[[RowPlan], T]) -> T:
        """What some work makes of the groups' rows. If memory runs out, it starts again on rows half as long.

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
            if self.trainer.world_size > 1 and not isinstance(self.policy, FSDPModule):
                both = torch.tensor([failed, longest], device=self.device)
                failed, longest = (int(x) for x in self._max_over_ranks(both))
            if not failed:
                return cast(T, attempt.result)
            if not self.row_budget.shrink(longest):
                raise torch.OutOfMemoryError(
                    f"rollout step {self.rollout_step}: out of memory with one completion in each packed row, the "
                    f"shortest there is ({attempt.reason or 'on another rank'}). Lower sampling.max_new_tokens or "
                    "data.max_prompt_tokens, set policy.gradient_checkpointing=true, or shard it (trainer=fsdp)."
                )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "Rollout step %d: out of memory; packed rows have at most %d tokens from here on. The result is the "
                "same. To have them from the start: updates.max_row_tokens=%d.",
                self.rollout_step,
                self.row_budget.max_tokens,
                self.row_budget.max_tokens,
            )
            announce(self.trainer, "out_of_memory", where="rows", max_row_tokens=self.row_budget.max_tokens)

    def _attempt(self, work: Callable[[RowPlan], Any], plan: RowPlan) -> _Attempt:
        """Its result, or why memory ran out; the traceback is let go, because its frames hold the activations."""
        try:
            return _Attempt(work(plan))
        except torch.OutOfMemoryError as error:
            if isinstance(self.policy, FSDPModule):
                smaller = max(1, min(self.row_budget.max_tokens, plan.longest_divisible) // 2)
                raise torch.OutOfMemoryError(
                    f"rollout step {self.rollout_step}: out of memory in a packed row of a sharded policy, which "
                    "cannot be tried again while other ranks wait for it. Resume from the last checkpoint with "
                    f"updates.max_row_tokens={smaller}. ({error})"
                ) from error
            return _Attempt(None, str(error))

    # Scoring

    def _score(
        self, groups: list[PromptGroup], *, moments: bool = False, temperature: float | None = None
    ) -> list[GroupScores]:
        """What the policy says about each group's tokens, before the update."""
        temperature = self.temperature if temperature is None else temperature

        @torch.no_grad()
        def work(plan: RowPlan) -> list[GroupScores]:
            scored: dict[int, GroupScores] = {}
            for indices in plan.rows:
                packed = self._pack(plan.row(indices))
                scores = self.policy(packed, temperature=temperature, last_layer="moments" if moments else None)
                scored |= by_piece(plan, indices, scores)
            return by_group(plan, scored)

        found = self._within_memory(groups, work)
        reshard(self.policy)
        return found

    def _score_later(self, groups: list[PromptGroup], counts: Sequence[int], *, all_of_them: bool) -> list[GroupScores]:
        """Scores of the groups that do not wait for the forward of their own update, by `updates.old_logprobs`.

        Args:
            groups: of a rollout step.
            counts: of groups in each minibatch.
            all_of_them: something needs all scores before the update.

        Returns:
            Of the last groups, in order: all, all but the first minibatch, or none.
        """
        source = "score" if all_of_them else self.update.old_logprobs
        reused = {"score": 0, "update": counts[0], "sampler": len(groups)}[source]
        return self._score(groups[reused:])


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
