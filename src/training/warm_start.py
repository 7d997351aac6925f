"""Supervised training before the first rollout, cached by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_model, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from src.data.rendering import PromptRenderer
from src.data.sources.base import Source
from src.models.loading.loading import LoadedPolicy
from src.models.loading.lora import whole_state
from src.training.optimizers import OptimizerSettings
from src.training.supervised import SupervisedDataset, SupervisedStage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """An SFT stage.

    Attributes:
        source: its `train` split is imitated.
        optimizer: AdamW and schedule.
        epochs: passes over the source.
        batch_size: examples of an optimizer step, on one rank.
        max_tokens: longer examples (prompt and target) are left out and counted.
        prompt_weight: weight of a prompt token's loss.
        gradient_clip: largest gradient norm.
        limit: at most so many examples, the first ones; None takes all.
        seed: of the order.
    """

    source: Source
    optimizer: OptimizerSettings
    epochs: int = 1
    batch_size: int = 16
    max_tokens: int = 4096
    prompt_weight: float = 0.0
    gradient_clip: float = 1.0
    limit: int | None = None
    seed: int = 0


def warm_start(
    loaded: LoadedPolicy, renderer: PromptRenderer, settings: WarmStart, cache: Path, trainer: Mapping[str, Any]
) -> Path:
    """Fine-tune the policy in place, or load the result of the same stage from the cache.

    Args:
        loaded: its weights are replaced. A policy on the meta device is filled, sharded and trained; or it stays there
            if the stage is in the cache, to be filled from the file.
        renderer: of prompts and targets.
        settings: the stage.
        cache: folder of finished stages, one file each; the same for all nodes.
        trainer: arguments of Lightning's Trainer that say where to run (accelerator, devices, strategy, …).

    Returns:
        The cached file. Its name is a digest of the settings, the start weights, and the tokenised examples.
    """
    policy = loaded.policy
    dataset = SupervisedDataset(settings.source.load("train")[: settings.limit], renderer, settings.max_tokens)
    if dataset.dropped:
        log.info(
            "Warm start: %d examples, %d dropped (> %d tokens).", len(dataset), dataset.dropped, settings.max_tokens
        )
    model, files = policy.model, loaded.weights
    start = sorted(model.state_dict().items()) if files is None else files.start_of(model)
    target = cache / f"{_digest(start, dataset, settings)}.safetensors"
    if target.exists():
        log.info("Warm start: loaded from %s.", target)
        if loaded.weights is None:
            load_model(policy.model, target)
        return target
    generator = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(dataset, settings.batch_size, shuffle=True, generator=generator, collate_fn=list)
    runner = L.Trainer(
        **{**trainer, "max_epochs": settings.epochs, "use_distributed_sampler": True},
        gradient_clip_val=settings.gradient_clip,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    runner.fit(SupervisedStage(policy, settings.optimizer, settings.prompt_weight, loaded.weights), loader)
    log.info("Warm start: done, loss of the last batch %.3f.", float(runner.callback_metrics["train/loss"]))
    state = whole_state(policy.model, keep=runner.is_global_zero)
    if runner.is_global_zero:
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file(state, str(partial), metadata={"format": "pt"})
        partial.rename(target)
    runner.strategy.barrier()
    return target


def _digest(start: Iterable[tuple[str, Tensor]], dataset: SupervisedDataset, settings: WarmStart) -> str:
    digest = hashlib.sha256()
    values = {f.name: (getattr(settings, f.name), f.default) for f in fields(settings) if f.name != "source"}
    plain = {name: value for name, (value, default) in values.items() if value != default}  # new options keep old files
    plain["optimizer"] = asdict(settings.optimizer)
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in start:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for prompt, target in (dataset[index] for index in range(len(dataset))):
        digest.update(prompt.numpy().tobytes())
        digest.update(b"/" + target.numpy().tobytes())
    return digest.hexdigest()[:24]
