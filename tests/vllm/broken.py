"""vLLM engines that take new weights wrongly, as real ones have: nothing fails but the log-probabilities."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from src.rollout.engine import EngineSource
from src.rollout.vllm.engine import VllmEngine, vllm_engine


def without_head(source: EngineSource, **settings: Any) -> VllmEngine:
    """The tied head is left out of every update, as it is of `named_parameters()`."""
    return _spoiled(source, settings, lambda named, _: ((n, t) for n, t in named if n != "lm_head.weight"))


def stale(source: EngineSource, **settings: Any) -> VllmEngine:
    """Every update hands over the first weights again."""
    first: list[tuple[str, Tensor]] = []

    def repeated(named: Iterable[tuple[str, Tensor]], version: int) -> Iterable[tuple[str, Tensor]]:
        given = [(name, tensor.clone()) for name, tensor in named]
        first.extend(given if not first else ())
        return iter(first)

    return _spoiled(source, settings, repeated)


def _spoiled(source: EngineSource, settings: dict[str, Any], change: Any) -> VllmEngine:
    engine = vllm_engine(source, **settings)
    update = engine.update_weights
    engine.update_weights = lambda named, version: update(change(named, version), version)  # type: ignore[method-assign]
    return engine
