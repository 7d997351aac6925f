"""What only a trace of the model's code tells of memory, kept between starts: a second of every start otherwise.

Traces follow from the sources and their arguments alone, but for models that bring code of their own; those are traced
each time. Nothing that is kept imports the model's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from src.config.result_cache import ResultCache
from src.models.loading.architecture import ParameterCounts
from src.models.loading.lora import LoraSettings
from src.rollout.engine import SamplingParams
from src.wings.memory.training_parts import ModelTraits, RowMemory, RowShape


class MemoryTraces:
    """Traces of `activations`, `models.loading.architecture` and `rollout_parts`, each with its arguments.

    Args:
        file: where results are kept; None: nowhere.
        trust_remote_code: the model brings code of its own.
    """

    def __init__(self, file: Path | None, *, trust_remote_code: bool = False) -> None:
        self._cache = ResultCache(None if trust_remote_code else file)
        self._trust = trust_remote_code

    def counts(self, architecture: PretrainedConfig, stored: torch.dtype, lora: LoraSettings | None) -> ParameterCounts:
        """See `count_parameters`, of a model of this architecture."""

        def count() -> Any:
            from src.models.loading.architecture import count_parameters, empty_model

            return astuple(count_parameters(empty_model(architecture, stored, lora, trust=self._trust)))

        return ParameterCounts(*self._kept(count, "counts", architecture, stored, lora))

    def row(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
        """See `row_memory`."""

        def trace() -> Any:
            from src.wings.memory.activations import row_memory

            return astuple(row_memory(architecture, traits, shape))

        return RowMemory(*self._kept(trace, "row", architecture, traits, shape))

    def forward(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
        """See `forward_memory`."""

        def trace() -> Any:
            from src.wings.memory.activations import forward_memory

            return forward_memory(architecture, traits, shape)

        return int(self._kept(trace, "forward", architecture, traits, shape))

    def head(
        self, vocabulary: int, width: int, dtype: torch.dtype, chunk: int, *, trained: bool, cuda: bool
    ) -> tuple[int, int]:
        """See `head_memory`."""

        def trace() -> Any:
            from src.wings.memory.activations import head_memory

            return head_memory(vocabulary, width, dtype, chunk, trained=trained, cuda=cuda)

        scoring, update = self._kept(trace, "head", vocabulary, width, dtype, chunk, trained, cuda)
        return scoring, update

    def sampling(self, rows: int, vocabulary: int, dtype: torch.dtype, params: SamplingParams) -> int:
        """See `sampling_bytes`."""

        def trace() -> Any:
            from src.wings.memory.rollout_parts import sampling_bytes

            return sampling_bytes(rows, vocabulary, dtype, params)

        return int(self._kept(trace, "sampling", rows, vocabulary, dtype, params))

    def save(self) -> None:
        """Keep them for the next start."""
        self._cache.save()

    def _kept(self, trace: Callable[[], Any], *arguments: Any) -> Any:
        texts = [one.to_json_string() if isinstance(one, PretrainedConfig) else repr(one) for one in arguments]
        key = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if (found := self._cache.get(key)) is None:
            found = trace()
            self._cache.put(key, found)
        return found
