"""Samples of what the policy wrote: `rollouts.jsonl` in the run folder, which `src/wings/reporting/inspector` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.algorithm.policy_loss import LossCounts
from src.callbacks.line_file import LineFileCallback
from src.errors import ConfigError
from src.protocol.dialogue import Message
from src.protocol.formats.known import REST
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rollout.collect import ScoredGroup
from src.rollout.history import PlayedEpisode
from src.training.step import RolloutStep, Training


class RolloutLog(LineFileCallback):
    """Appends the first prompt groups of a rollout step, each token with region, weight, scores and loss term.

    Args:
        path: the file; in the same run folder a resumed run goes on in it where its checkpoint was.
        every_n_steps: rollout steps between entries.
        groups: prompt groups a time, of those that rank 0 updates with.
    """

    def __init__(self, path: str, every_n_steps: int = 1, groups: int = 1) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("groups", groups)):
            if value < 1:
                raise ConfigError(f"callbacks.rollout_log.{name}: expected at least 1, found {value}.")
        super().__init__(path)
        self._every = every_n_steps
        self._groups = groups

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        """Write this step's groups, one completion a line."""
        if step.index % self._every:
            return
        counts = minibatch_counts(module, step)  # over all ranks, so before the others leave
        if not trainer.is_global_zero:
            return
        minibatch = [number for number, size in enumerate(step.minibatches) for _ in range(size)]
        logged = list(zip(step.scored, step.groups, step.entropies, minibatch, strict=True))[: self._groups]
        table = module.sampler.collector.table
        for scored, group, entropies, number in logged:
            terms = loss_terms(module, group, entropies, counts[number])
            self.lines.append(group_records(step.index, scored, group, entropies, table, terms))


def episode_record(episode: PlayedEpisode, group: PromptGroup, index: int) -> dict[str, Any]:
    """An episode turn by turn: what was observed, said and called, what it earned, and its advantage.

    Args:
        episode: of the group.
        group: as tensors.
        index: of the episode among the group's.
    """
    advantages = group.token_advantages.split(group.lengths.tolist())[index].split(episode.lengths)
    turns = [
        {**turn.record(), "earned": earned, "advantage": float(advantage[0])}
        for turn, earned, advantage in zip(episode.turns, episode.earned, advantages, strict=True)
    ]
    faults = {name: count for name, count in episode.counts.items() if count}
    return {"ending": episode.ending, "rewrites": episode.history.rewrites, "faults": faults, "turns": turns}


def minibatch_counts(module: Training, step: RolloutStep) -> list[LossCounts]:
    """What the loss of each minibatch is divided by, over all ranks."""
    local, start = [], 0
    for size in step.minibatches:
        local.append(module.objective.counts(step.groups[start : start + size]))
        start += size
    table = torch.tensor(local, dtype=torch.float64, device=module.device)
    return [LossCounts(*row) for row in module.ranks.sum(table).tolist()]


@torch.no_grad()
def loss_terms(module: Training, group: PromptGroup, entropies: Tensor, counts: LossCounts) -> Tensor | None:
    """What each token adds to its minibatch's loss before the rollout step's first update, float32 [N].

    The loss itself says it: with the policy that `old_logprobs` are of, every ratio of Eq. 19 is 1. None without these.

    Args:
        module: whose loss it is.
        group: with weights.
        entropies: [N], nats.
        counts: of its minibatch.
    """
    if group.old_logprobs is None:
        return None
    loss = module.objective.row_loss([group], counts, first=False)
    return loss.terms(group.old_logprobs, entropies.to(group.weights))


def group_records(
    rollout_step: int,
    scored: ScoredGroup,
    group: PromptGroup,
    entropies: Tensor,
    table: TokenBytes,
    terms: Tensor | None = None,
) -> list[dict[str, Any]]:
    """One JSON-able record a completion. Per-token lists are aligned; token bytes that are not UTF-8 read as U+FFFD.

    What the completions share is in the first record alone: the rendered prompt, the gold calls, and of a model's own
    format its name and the tools that its answers are read with.

    Args:
        rollout_step: from 0.
        scored: the group's text and rewards.
        group: the same as tensors, with weights; its `old_logprobs` are logged if it has any.
        entropies: [N], nats; of a completion where they are NaN they are not logged.
        table: the bytes of each token.
        terms: [N], of the loss; logged to six digits, as they may be tiny.
    """
    sizes: Sequence[int] = group.lengths.tolist()
    columns = {
        "weights": group.weights,
        "entropies": entropies,
        "rollout_logprobs": group.rollout_logprobs,
        "old_logprobs": group.old_logprobs,
    }
    split = {key: column.split(sizes) for key, column in columns.items() if column is not None}
    example = scored.prompt.example
    shared: dict[str, Any] = {
        "prompt": table.decode(scored.prompt.prompt_ids).decode("utf-8", "replace"),
        "gold_calls": [{"name": call.name, "parameters": call.parameters} for call in example.target.calls],
    }
    reading = scored.prompt.reading
    if reading.format.name != REST.name:
        shared |= {"output_format": reading.format.name, "tools": [dict(tool.json) for tool in reading.tools]}
    records = []
    for index, item in enumerate(scored.completions):
        ids = item.completion.token_ids.tolist()
        record = {
            "rollout_step": rollout_step,
            "example": f"{example.source}/{example.id}",
            "completion": index,
            **(shared if index == 0 else {}),
            "text": item.decoded.text,
            "target": scored.prompt.format.step_text(example.target) if example.target != Message("assistant") else "",
            "reward": item.reward.total,
            "advantage": float(group.advantages[index]),
            **item.reward.parts.metrics(),
            "finish_reason": item.completion.finish_reason,
            "tokens": [table.decode([token]).decode("utf-8", "replace") for token in ids],
            "regions": [Region(region).label for region in item.decoded.regions.tolist()],
            **{
                key: [round(value, 5) for value in parts[index].tolist()]
                for key, parts in split.items()
                if not bool(parts[index].isnan().any())
            },
        }
        if item.episode is not None:
            record["episode"] = episode_record(item.episode, group, index)
        if terms is not None:
            record["loss_terms"] = [float(f"{value:.6g}") for value in terms.split(sizes)[index].tolist()]
        records.append(record)
    return records
