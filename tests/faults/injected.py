"""Faults to inject into a training run in this process: an engine that fails, gradients that are NaN, a slow logger.

Each fault strikes at rollout steps drawn in advance from a seed, so that a run can be repeated.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from src.rollout.engine import Completion, SamplingParams
from src.training.step import RolloutCallback

EVENTS = {"engine": "engine_fault", "gradient": "skipped_step", "logger": "slow_logger"}
"""Fault -> the event that it leaves in `metrics.jsonl`."""


class Plan:
    """Which faults strike at which rollout steps, and which have."""

    def __init__(self, steps: int, rate: float, seed: int) -> None:
        drawn = random.Random(seed)
        self.due = {(kind, step) for step in range(steps) for kind in EVENTS if drawn.random() < rate}
        self.struck: list[tuple[str, int]] = []

    def strikes(self, kind: str, step: int) -> bool:
        """Whether it does now; each strikes once."""
        if (kind, step) not in self.due:
            return False
        self.due.discard((kind, step))
        self.struck.append((kind, step))
        return True


class FaultyEngine:
    """The engine in a run, whose `generate` fails before it begins when it is due."""

    def __init__(self, engine: Any, plan: Plan) -> None:
        self._engine, self._plan = engine, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        if params.n > 1 and self._plan.strikes("engine", self._engine.weights_version):
            raise RuntimeError("injected: the engine failed")
        return self._engine.generate(prompts, params, seeds)


class NaNGradients(RolloutCallback):
    """Makes the gradient of one weight NaN in the first backward of a rollout step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_rollout(self, trainer: Any, module: Any, step: Any) -> None:
        if not self._plan.strikes("gradient", step.index):
            return
        weight = next(parameter for parameter in module.policy.parameters() if parameter.requires_grad)

        def poison(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)
            handle.remove()

        handle = weight.register_post_accumulate_grad_hook(poison)


class SleepyLogger(Logger):
    """Keeps nothing, and takes its time when it is due."""

    def __init__(self, plan: Plan, seconds: float) -> None:
        super().__init__()
        self._plan, self._seconds = plan, seconds

    @property
    def name(self) -> str:
        return "sleepy"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics and self._plan.strikes("logger", int(step or 0) - 1):
            time.sleep(self._seconds)


class Memory(Callback):
    """Resident memory of the process in MiB, after every rollout step."""

    def __init__(self) -> None:
        self.mib: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.mib.append(psutil.Process().memory_info().rss / 2**20)
