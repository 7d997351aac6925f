"""A callback that holds a training before each rollout step until the other side asks for it."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import LightningModule, Trainer

from src.training.step import RolloutCallback, RolloutStep, Training
from tests.benchmarks.resident import mark, peak_since
from tests.benchmarks.serving import Channel

channel: Channel | None = None
"""Set by the process before its training starts."""


class Turnstile(RolloutCallback):
    """Lets one rollout step through for each request, and answers with what it took."""

    def __init__(self) -> None:
        assert channel is not None
        self._channel = channel
        self._step: RolloutStep | None = None
        self._started, self._resident = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._channel.send(threads=torch.get_num_threads())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._channel.receive()
        self._resident = mark()
        self._started = time.perf_counter()

    def on_rollout_step_end(self, trainer: Trainer, module: Training, step: RolloutStep) -> None:
        self._step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self._started
        assert self._step is not None
        groups = self._step.groups
        parts = {key.removeprefix("time/"): v for key, v in self._step.metrics.items() if key.startswith("time/")}
        self._channel.send(
            seconds=seconds,
            bytes=peak_since(self._resident),
            completions=sum(len(group.lengths) for group in groups),
            tokens=sum(len(group.token_ids) for group in groups),
            prompt_tokens=sum(len(group.prompt_ids) * len(group.lengths) for group in groups),
            parts=parts | {"everything else": seconds - sum(parts.values())},
        )
