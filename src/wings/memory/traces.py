"""What only a trace of the model's code tells of memory, kept between starts: a second of every start otherwise.

Traces follow from the sources and their arguments alone, but for models that bring code of their own; those are traced
each time. Nothing that is kept imports the model's code. A model that cannot be traced is bounded.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Callable
from dataclasses import astuple, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from src.config.result_cache import ResultCache
from src.models.loading.architecture import ParameterCounts, count_parameters, empty_model
from src.models.loading.lora import LoraSettings
from src.rollout.engine import SamplingParams
from src.wings.memory.rollout_parts import attention_heads
from src.wings.memory.training_parts import ModelTraits, RowMemory, RowShape


class MemoryTraces:
    """Traces of `activations`, `models.loading.architecture` and `rollout_parts`, each with its arguments.

    Args:
        file: where results are kept; None: nowhere.
        trust_remote_code: the model brings code of its own.

    Attributes:
        bounded: why the model could not be traced; empty where it could.
    """

    def __init__(self, file: Path | None, *, trust_remote_code: bool = False) -> None:
        self._cache = ResultCache(None if trust_remote_code else file)
        self._trust = trust_remote_code
        self.bounded: list[str] = []

    def counts(self, architecture: PretrainedConfig, stored: torch.dtype, lora: LoraSettings | None) -> ParameterCounts:
        """See `count_parameters`, of a model of this architecture."""
        model = partial(empty_model, architecture, stored, lora, trust=self._trust)
        kept = self._kept(lambda: astuple(count_parameters(model())), "counts", architecture, stored, lora)
        return ParameterCounts(*kept)

    def row(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
        """See `row_memory`, or `row_bound` where the model cannot be traced."""
        traced = self._of_model("row_memory", architecture, traits, shape)
        return RowMemory(*(traced or self._traced("activations:row_bound", architecture, traits, shape)))

    def forward(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
        """See `forward_memory`; likewise."""
        traced = self._of_model("forward_memory", architecture, traits, shape)
        return int(traced or RowMemory(*self._traced("activations:row_bound", architecture, traits, shape)).forward)

    def cache(self, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
        """See `cache_memory`; of a model that cannot be traced, keys and values of all heads for each token."""
        traced = self._of_model("cache_memory", architecture, traits, shape)
        if traced is not None:
            return int(traced)
        text = architecture.get_text_config(decoder=True)
        sizes = (heads * (key + value) for heads, key, value in map(attention_heads, text.per_layer_config))
        return shape.tokens * max(sizes) * traits.weights.itemsize

    def head(self, vocabulary: int, width: int, traits: ModelTraits, chunk: int, *, trained: bool) -> tuple[int, int]:
        """See `head_memory`."""
        shape, how = (vocabulary, width, traits.weights, chunk), (trained, traits.cuda, traits.autocast)
        scoring, update = self._traced("activations:head_memory", *shape, *how)
        return scoring, update

    def sampling(self, rows: int, vocabulary: int, dtype: torch.dtype, params: SamplingParams) -> int:
        """See `sampling_bytes`."""
        return int(self._traced("rollout_parts:sampling_bytes", rows, vocabulary, dtype, params))

    def save(self) -> None:
        """Keep them for the next start."""
        self._cache.save()

    def _of_model(self, function: str, *arguments: Any) -> Any:
        """What a trace of the model's code returns; None where that code does not run on tensors without data."""

        def trace() -> Any:
            try:
                return self._result(f"activations:{function}", *arguments)
            except Exception as error:  # noqa: BLE001 (of code that may be anybody's)
                return f"{type(error).__name__}: {error}".splitlines()[0][:200]

        found = self._kept(trace, function, *arguments)
        if not isinstance(found, str):
            return found
        self.bounded = [found]
        return None

    def _traced(self, function: str, *arguments: Any) -> Any:
        """What a function of this package returns, whose module is imported only where nothing is kept."""
        return self._kept(lambda: self._result(function, *arguments), function, *arguments)

    def _result(self, function: str, *arguments: Any) -> Any:
        result = pkgutil.resolve_name(f"src.wings.memory.{function}")(*arguments)
        return astuple(result) if is_dataclass(result) and not isinstance(result, type) else result

    def _kept(self, trace: Callable[[], Any], *arguments: Any) -> Any:
        texts = [one.to_json_string() if isinstance(one, PretrainedConfig) else repr(one) for one in arguments]
        key = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if (found := self._cache.get(key)) is None:
            found = trace()
            self._cache.put(key, found)
        return found
