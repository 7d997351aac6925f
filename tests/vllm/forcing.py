"""A logits processor of vLLM's that leaves one token to each request: the next of those given for its seed."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

GIVEN: dict[int, list[int]] = {}
"""Seed of a request -> the ids that it samples."""


class Forcing(LogitsProcessor):
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}  # place in the batch -> given ids, sampled ids

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, sampled in batch_update.added:
            assert params.seed is not None
            self._rows[index] = (GIVEN[params.seed], sampled)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, (given, sampled) in self._rows.items():
            token = given[len(sampled)]
            kept = logits[index, token].clone()
            logits[index] = -torch.inf
            logits[index, token] = kept
        return logits
