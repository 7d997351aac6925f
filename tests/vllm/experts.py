"""A vLLM engine whose outputs hold the experts that its routers chose, as those of a GPU do."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from src.rollout.engine import EngineSource
from src.rollout.vllm.engine import VllmEngine, vllm_engine


class _WithExperts(VllmEngine):
    def _engine(self) -> Any:
        new = self._llm is None
        llm = super()._engine()
        if new:
            self._choices: dict[int, list[torch.Tensor]] = defaultdict(list)
            llm.collective_rpc(_watch, args=(self._choices,))
        return llm

    def generate(self, *args: Any) -> Any:
        for found in self._choices.values():
            found.clear()
        return super().generate(*args)

    def _completions(self, output: Any) -> Any:
        if len(output.outputs) == 1:  # the probe: its prompt, then token by token
            chosen = {index: torch.cat(found).numpy() for index, found in self._choices.items()}
            tokens, best = next(iter(chosen.values())).shape
            output.outputs[0].routed_experts = np.zeros((tokens, max(chosen) + 1, best), dtype=np.uint8)
            for index, found in chosen.items():  # a layer without experts keeps zeros
                output.outputs[0].routed_experts[:, index] = found
        return super()._completions(output)


def _watch(worker: Any, choices: dict[int, list[torch.Tensor]]) -> None:
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    for module in worker.model_runner.model.modules():
        if isinstance(module, MoERunner):
            module.router.set_capture_fn(choices[module.layer_id].append)


def with_experts(source: EngineSource, **settings: Any) -> VllmEngine:
    """`rollout=vllm`, and what its routers choose."""
    engine = vllm_engine(source, **settings)
    return _WithExperts(engine._arguments, engine._model)
