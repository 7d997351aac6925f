"""Traces of `models.activations`, kept between starts: a second of every start otherwise.

They follow from the sources and their arguments alone, but for models that bring code of their own; those are traced
each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from src.models.activations import ModelTraits, RowMemory, forward_memory, head_memory, row_memory
from src.models.row_shape import RowShape
from src.utils.result_cache import ResultCache


class MemoryTraces:
    """The functions of `models.activations`, each with its arguments.

    Args:
        file: where results are kept; None: nowhere.
    """

    def __init__(self, file: Path | None) -> None:
        self._cache = ResultCache(file)

    def row(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
        """See `row_memory`."""
        found = self._kept(lambda: astuple(row_memory(architecture, traits, shape)), "row", architecture, traits, shape)
        return RowMemory(*found)

    def forward(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
        """See `forward_memory`."""
        return int(
            self._kept(lambda: forward_memory(architecture, traits, shape), "forward", architecture, traits, shape)
        )

    def head(
        self, vocabulary: int, width: int, dtype: torch.dtype, chunk: int, *, trained: bool, cuda: bool
    ) -> tuple[int, int]:
        """See `head_memory`."""
        arguments = (vocabulary, width, dtype, chunk, trained, cuda)
        scoring, update = self._kept(
            lambda: head_memory(vocabulary, width, dtype, chunk, trained=trained, cuda=cuda), "head", *arguments
        )
        return scoring, update

    def save(self) -> None:
        """Keep them for the next start."""
        self._cache.save()

    def _kept(self, trace: Callable[[], Any], *arguments: Any) -> Any:
        if any(isinstance(one, ModelTraits) and one.trust_remote_code for one in arguments):
            return trace()
        texts = [one.to_json_string() if isinstance(one, PretrainedConfig) else repr(one) for one in arguments]
        key = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if (found := self._cache.get(key)) is None:
            found = trace()
            self._cache.put(key, found)
        return found
