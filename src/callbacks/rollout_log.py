"""Samples of what the policy wrote: `rollouts.jsonl` in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.callbacks.base import RolloutStep
from src.callbacks.lines import LinesCallback
from src.data.rendering import step_text
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rollout.collect import ScoredGroup

if TYPE_CHECKING:
    from src.models.policy_module import PolicyModule


class RolloutLog(LinesCallback):
    """Appends the first prompt groups of a rollout step, with each token's region, weight, entropy and log-probability.

    Args:
        path: the file; in the same run folder a resumed run goes on in it where its checkpoint was.
        every_n_steps: rollout steps between entries.
        groups: prompt groups a time, of rank 0.
    """

    def __init__(self, path: str, every_n_steps: int = 1, groups: int = 1) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("groups", groups)):
            if value < 1:
                raise ValueError(f"callbacks.rollout_log.{name}: expected at least 1, found {value}.")
        super().__init__(path)
        self._every = every_n_steps
        self._groups = groups

    @rank_zero_only
    def on_rollout_step_end(self, trainer: Trainer, module: PolicyModule, step: RolloutStep) -> None:
        """Write this step's groups, one completion a line."""
        if step.index % self._every:
            return
        logged = list(zip(step.scored, step.groups, step.entropies, strict=True))[: self._groups]
        for scored, group, entropies in logged:
            self.lines.append(group_records(step.index, scored, group, entropies, module.collector.table))


def group_records(
    rollout_step: int, scored: ScoredGroup, group: PromptGroup, entropies: Tensor, table: TokenBytes
) -> list[dict[str, Any]]:
    """One JSON-able record a completion. Per-token lists are aligned; token bytes that are not UTF-8 read as U+FFFD.

    Args:
        rollout_step: from 0.
        scored: the group's text and rewards.
        group: the same as tensors, with weights.
        entropies: [N], nats.
        table: the bytes of each token.
    """
    sizes: Sequence[int] = group.lengths.tolist()
    split = {
        "weights": group.weights.split(sizes),
        "entropies": entropies.split(sizes),
        "rollout_logprobs": group.rollout_logprobs.split(sizes),
    }
    example = scored.prompt.example
    records = []
    for index, item in enumerate(scored.completions):
        ids = item.completion.token_ids.tolist()
        records.append(
            {
                "rollout_step": rollout_step,
                "example": f"{example.source}/{example.id}",
                "completion": index,
                "text": item.decoded.text,
                "target": step_text(example.target),
                "reward": item.reward.total,
                "advantage": float(group.advantages[index]),
                **item.reward.parts.metrics(),
                "finish_reason": item.completion.finish_reason,
                "tokens": [table.decode([token]).decode("utf-8", "replace") for token in ids],
                "regions": [Region(region).label for region in item.decoded.regions.tolist()],
                **{key: [round(value, 5) for value in parts[index].tolist()] for key, parts in split.items()},
            }
        )
    return records
