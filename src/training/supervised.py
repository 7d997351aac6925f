"""Plain supervised training in one go, without rollout steps: a warm start, and how the tiny policies were made."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import Dataset

from src.algorithm.packing import pack_sequences
from src.algorithm.supervised_loss import SupervisedLoss
from src.data.rendering import PromptRenderer
from src.models.loading.sharding import place_policy
from src.models.loading.weight_source import WeightSource
from src.models.policy import Policy
from src.protocol.dialogue import TurnExample
from src.training.optimizers import OptimizerSettings, build_optimizer

log = logging.getLogger(__name__)

_REPORT_EVERY = 100  # batches

SupervisedPair = tuple[Tensor, Tensor]
"""Prompt ids [P] and target ids [T], both int64."""


class SupervisedDataset(Dataset[SupervisedPair]):
    """Examples rendered when asked for.

    Args:
        examples: steps with targets.
        renderer: renders both sides.
        max_tokens: longer pairs are left out, counted in `dropped`; 0 keeps all (and renders nothing in advance).
    """

    def __init__(self, examples: Sequence[TurnExample], renderer: PromptRenderer, max_tokens: int = 0) -> None:
        self._renderer = renderer
        self._examples = [e for e in examples if not max_tokens or sum(map(len, self._pair(e))) <= max_tokens]
        self.dropped = len(examples) - len(self._examples)
        if not self._examples:
            raise ValueError(f"max_tokens: all {len(examples)} examples are longer than {max_tokens} tokens.")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> SupervisedPair:
        return self._pair(self._examples[index])

    def _pair(self, example: TurnExample) -> SupervisedPair:
        return self._renderer.render(example).prompt_ids, self._renderer.render_target(example)


class SupervisedStage(LightningModule):
    """Minimises the mean negative log-likelihood of target tokens.

    Args:
        policy: what is trained.
        optimizer: its settings.
        prompt_weight: weight of a prompt token's loss beside a target token's 1. Above 0 the policy also learns to
            read; 0 is the usual fine-tuning.
        weights: of a policy that was left on the meta device for the strategy to shard.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerSettings,
        prompt_weight: float = 0.0,
        weights: WeightSource | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= prompt_weight <= 1:
            raise ValueError(f"prompt_weight: expected a value in [0, 1], found {prompt_weight}.")
        self.policy = policy.train()
        self._settings = optimizer
        self._prompt_weight = prompt_weight
        self._weights = weights

    def configure_model(self) -> None:
        """Shard the policy under a `ShardedStrategy`."""
        place_policy(self, self.trainer, self.policy, self._weights)

    def training_step(self, batch: list[SupervisedPair], batch_idx: int) -> Tensor:
        """Weighted mean negative log-likelihood over the batch's tokens, a scalar, nats."""
        loss = supervised_loss(self.policy, batch, self._prompt_weight)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        if batch_idx % _REPORT_EVERY == 0:
            log.info("Supervised batch %d of %s: loss %.3f", batch_idx, self.trainer.num_training_batches, loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, the schedule counted in optimizer steps."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.policy.named_parameters(), self._settings, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def supervised_loss(policy: Policy, batch: Sequence[SupervisedPair], prompt_weight: float = 0.0) -> Tensor:
    """Mean of -log p over a batch's tokens, a scalar, nats; a prompt token counts `prompt_weight` of a target token.

    With `prompt_weight` 0, prompts are context only. The mean is over all tokens of the batch, so it does not depend
    on how they are packed.
    """
    device = next(policy.parameters()).device
    if prompt_weight == 0:
        row = pack_sequences(batch)
        weights = torch.ones(len(row.targets))
    else:
        whole = [torch.cat(pair) for pair in batch]
        row = pack_sequences([(ids[:1], ids[1:]) for ids in whole])
        parts = [(torch.full((len(prompt) - 1,), prompt_weight), torch.ones(len(target))) for prompt, target in batch]
        weights = torch.cat([part for pair in parts for part in pair])
    loss = SupervisedLoss(weights.to(device), float(weights.sum()))
    return cast(Tensor, policy(row.to(device), loss=loss).loss)
