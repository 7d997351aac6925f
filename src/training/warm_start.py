"""Supervised training before the first rollout step, cached by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from safetensors.torch import load_model, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.algorithm.region_weights import RegionWeighting
from src.data.datamodule import PromptBatch
from src.data.rendering import PromptRenderer, RenderedPrompt
from src.data.sources.base import Source
from src.models.loading.loading import LoadedPolicy
from src.models.loading.lora import whole_state
from src.protocol.dialogue import TurnExample
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.training.module import TrainingModule
from src.training.objective import Imitation
from src.training.optimizers import OptimizerSettings
from src.training.ranks import Ranks
from src.training.settings import SupervisedSettings, UpdateSettings

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
    loaded: LoadedPolicy,
    renderer: PromptRenderer,
    settings: WarmStart,
    cache: Path,
    trainer: Mapping[str, Any],
    max_row_tokens: int = 16384,
    examples: Sequence[TurnExample] | None = None,
) -> Path:
    """Fine-tune the policy in place, or load the result of the same stage from the cache.

    Args:
        loaded: its weights are replaced. A policy on the meta device is filled, sharded and trained; or it stays there
            if the stage is in the cache, to be filled from the file.
        renderer: of prompts and targets.
        settings: the stage.
        cache: folder of finished stages, one file each; the same for all nodes.
        trainer: arguments of Lightning's Trainer that say where to run (accelerator, devices, strategy, …).
        max_row_tokens: longest packed row; it does not change the result.
        examples: those of the source, if they are read already.

    Returns:
        The cached file. Its name is a digest of the settings, the start weights, and the tokenised examples.
    """
    examples = settings.source.load("train") if examples is None else examples
    prompts = within(examples[: settings.limit], renderer, settings.max_tokens)
    model, files = loaded.policy.model, loaded.weights
    start = sorted(model.state_dict().items()) if files is None else files.start_of(model)
    target = cache / f"{_digest(start, prompts, renderer, settings)}.safetensors"
    if target.exists():
        log.info("Warm start: loaded from %s.", target)
        if files is None:
            load_model(model, target)
        return target
    runner = imitate(loaded, renderer, prompts, settings, trainer, max_row_tokens)
    log.info("Warm start: done, loss of the last batch %.3f.", float(runner.callback_metrics["train/loss"]))
    state = whole_state(model, keep=runner.is_global_zero)
    if runner.is_global_zero:
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file(state, str(partial), metadata={"format": "pt"})
        partial.rename(target)
    runner.strategy.barrier()
    return target


def imitate(
    loaded: LoadedPolicy,
    renderer: PromptRenderer,
    prompts: Sequence[RenderedPrompt],
    settings: WarmStart,
    trainer: Mapping[str, Any],
    max_row_tokens: int = 16384,
    *,
    drop_last: bool = False,
) -> L.Trainer:
    """Train a policy on the targets of some prompts; see `warm_start`.

    Args:
        loaded: the policy.
        renderer: of the targets.
        prompts: all of one epoch.
        settings: the stage; its source is not read.
        trainer: arguments of Lightning's Trainer.
        max_row_tokens: longest packed row.
        drop_last: leave out a last batch that is not full.

    Returns:
        The trainer, after its fit.
    """
    runner = L.Trainer(
        **{**trainer, "max_epochs": settings.epochs, "use_distributed_sampler": False},
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    batch = settings.batch_size * runner.world_size
    batches = len(prompts) // batch if drop_last else -(-len(prompts) // batch)
    collector = Collector(
        NoEngine(), ToolCallReward(), TokenBytes.from_tokenizer(loaded.tokenizer), loaded.stop_token_ids
    )
    module = TrainingModule(
        loaded.policy,
        NoEngine(),
        collector,
        Imitation(SupervisedSettings("warm_start", RegionWeighting()), renderer, settings.prompt_weight),
        UpdateSettings(
            rollout_steps=settings.epochs * batches,
            prompts_per_minibatch=batch,
            max_row_tokens=max_row_tokens,
            gradient_clip=settings.gradient_clip,
        ),
        settings.optimizer,
        SamplingParams(),
        prompts_per_step=batch,
        ranks=Ranks(),
        weights=loaded.weights,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    dataset: Dataset[RenderedPrompt] = prompts  # type: ignore[assignment]  # a sequence is all that a loader needs
    loader = DataLoader(dataset, batch, shuffle=True, generator=generator, collate_fn=PromptBatch, drop_last=drop_last)
    runner.fit(module, loader)
    return runner


def within(examples: Sequence[TurnExample], renderer: PromptRenderer, max_tokens: int) -> list[RenderedPrompt]:
    """The rendered prompts of the examples that take at most `max_tokens` tokens, prompt and target.

    Raises:
        ValueError: there is none.
    """
    both = zip(renderer.render_all(examples), renderer.render_targets(examples), strict=True)
    kept = [prompt for prompt, target in both if len(prompt.prompt_ids) + len(target) <= max_tokens]
    if not kept:
        raise ValueError(f"max_tokens: all {len(examples)} examples are longer than {max_tokens} tokens.")
    if len(kept) < len(examples):
        log.info("Warm start: %d examples, %d dropped (> %d tokens).", len(kept), len(examples) - len(kept), max_tokens)
    return kept


class NoEngine:
    """A `RolloutEngine` for training that samples nothing."""

    copies_weights = False
    ranks_per_engine = 1
    weights_version = 0
    context = None

    def generate(self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]) -> NoReturn:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("NoEngine: this training samples nothing.")

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Nothing to update."""

    def release_memory(self) -> None:
        """Nothing to release."""

    def close(self) -> None:
        """Nothing to close."""


def _digest(
    start: Iterable[tuple[str, Tensor]],
    prompts: Iterable[RenderedPrompt],
    renderer: PromptRenderer,
    settings: WarmStart,
) -> str:
    digest = hashlib.sha256()
    values = {f.name: (getattr(settings, f.name), f.default) for f in fields(settings) if f.name != "source"}
    plain = {name: value for name, (value, default) in values.items() if value != default}  # new options keep old files
    plain["optimizer"] = asdict(settings.optimizer)
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in start:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for prompt in prompts:
        digest.update(prompt.prompt_ids.numpy().tobytes())
        digest.update(b"/" + renderer.render_target(prompt.example).numpy().tobytes())
    return digest.hexdigest()[:24]
