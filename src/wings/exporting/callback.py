"""Exports while training: model folders that transformers and vLLM load, every few rollout steps and at the end.

All ranks gather the weights together; rank 0 writes. Nothing of the training depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning import LightningModule, Trainer
from omegaconf import OmegaConf

from src.errors import ConfigError
from src.protocol.types import Region
from src.runs.summary import command_line, versions
from src.training.step import RolloutCallback, Training
from src.wings.evaluation.resolving import asked
from src.wings.exporting.folder import ExportError, check_free, gathered_weights, generation_config, write_export
from src.wings.exporting.model_card import CardFacts, Scores, base_model, model_card

log = logging.getLogger(__name__)

ExportPrecision = Literal["auto", "bfloat16", "float32"]
FINAL = "final"


class HFExport(RolloutCallback):
    """Writes `<folder>/step_<rollout step>` and `<folder>/final`: weights, tokenizer, generation config, model card.

    Args:
        folder: below which each export gets a folder of its own.
        config_path: the run's composed config, for the card.
        every_n_rollout_steps: rollout steps between two exports; None: only at the end.
        at_end: `final`, after training, with the scores of the last validation.
        dtype: of the exported weights. `auto`: that of training's forwards, which is what was sampled from; None: the
            weights as they are trained.

    Raises:
        ValueError: an interval below 1, or an unknown dtype.
    """

    def __init__(
        self,
        folder: str,
        config_path: str,
        every_n_rollout_steps: int | None = None,
        *,
        at_end: bool = True,
        dtype: ExportPrecision | None = "auto",
    ) -> None:
        if every_n_rollout_steps is not None and every_n_rollout_steps < 1:
            raise ConfigError(
                "callbacks.hf_export.every_n_rollout_steps: expected at least 1 or null, found "
                f"{every_n_rollout_steps}."
            )
        if dtype is not None and dtype not in get_args(ExportPrecision):
            raise ConfigError(
                f"callbacks.hf_export.dtype: expected one of {get_args(ExportPrecision)} or null, found '{dtype}'."
            )
        self._folder, self._config_path = Path(folder), Path(config_path)
        self._every, self._at_end, self._dtype = every_n_rollout_steps, at_end, dtype
        self._resumed = False
        self._before: dict[str, Scores] = {}
        self._after: dict[str, Scores] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder with exports of another run now rather than after the training.

        Raises:
            ExportError: there is one.
        """
        self._resumed = trainer.ckpt_path is not None  # then exports of steps that are done again are replaced
        self._on_rank_zero(trainer, lambda: check_free(self._folder, replace=self._resumed))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores."""
        rollout_step, values = cast(Training, pl_module).validated
        self._keep("validation", rollout_step, values)

    def on_benchmark(self, trainer: Trainer, module: Training, scores: dict[str, float]) -> None:
        """Keep the scores."""
        self._keep("benchmark", module.rollout_step, scores)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Export when a step is due."""
        module = cast(Training, pl_module)
        ends = module.rollout_step >= module.updates.rollout_steps and self._at_end
        if self._every is not None and module.rollout_step % self._every == 0 and not ends:
            self._export(trainer, module, f"step_{module.rollout_step:06d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export what training ended with."""
        if self._at_end:
            self._export(trainer, cast(Training, pl_module), FINAL)

    def state_dict(self) -> dict[str, Any]:
        """The scores, so that the card of a resumed run has those of its start."""
        kept = {"before": self._before, "after": self._after}
        return {key: {event: asdict(scores) for event, scores in found.items()} for key, found in kept.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with such scores."""
        self._before, self._after = (
            {event: Scores(**scores) for event, scores in state_dict[key].items()} for key in ("before", "after")
        )

    def _keep(self, event: str, rollout_step: int, values: dict[str, float]) -> None:
        kept = self._before if rollout_step == 0 else self._after
        kept[event] = Scores(rollout_step, dict(values))

    def _export(self, trainer: Trainer, module: Training, name: str) -> None:
        """Gather on all ranks, write on rank 0."""
        model = module.policy.model
        dtype = self._export_dtype(trainer, model.dtype)
        weights = gathered_weights(model, keep=trainer.is_global_zero, dtype=dtype)
        folder = self._folder / name

        def write() -> None:
            tokenizer = trainer.datamodule.renderer.tokenizer  # type: ignore[attr-defined]
            facts = self._facts(trainer, module, dtype)
            write_export(
                model,
                tokenizer,
                weights,
                folder,
                card=model_card(facts),
                prompt=asked(facts.config["prompt"]),
                generation=generation_config(
                    model, tokenizer, module.sampler.params.stop_token_ids, module.sampler.params
                ),
                replace=self._resumed,
            )
            log.info("Rollout step %d is exported to '%s'.", module.rollout_step, folder)

        self._on_rank_zero(trainer, write)

    def _export_dtype(self, trainer: Trainer, own: torch.dtype) -> torch.dtype:
        if self._dtype == "auto":
            return torch.bfloat16 if str(trainer.precision).startswith("bf16") else own
        return own if self._dtype is None else getattr(torch, self._dtype)

    def _facts(self, trainer: Trainer, module: Training, dtype: torch.dtype) -> CardFacts:
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(self._config_path)))
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        factors = module.region_factors.table().tolist()
        return CardFacts(
            name=f"{base_model(config['policy'])}, {module.objective.name}, {module.rollout_step} rollout steps",
            config=config,
            rollout_steps=module.rollout_step,
            optimizer_steps=trainer.global_step,
            before=list(self._before.values()),
            after=list(self._after.values()),
            region_factors={region.label: factors[region] for region in Region},
            prompts=len(datamodule.prompts("train")),
            dropped=datamodule.dropped,
            dtype=str(dtype).removeprefix("torch."),
            command=command_line(),
            versions=versions(),
            format=datamodule.renderer.format.name,
            thinks=getattr(datamodule.renderer.template, "thinks", True),
        )

    @staticmethod
    def _on_rank_zero(trainer: Trainer, action: Callable[[], None]) -> None:
        """Run there; where it fails, fail on every rank, so that none waits for the others."""
        failure = ""
        if trainer.is_global_zero:
            try:
                action()
            except ExportError as error:
                failure = str(error)
        if failure := trainer.strategy.broadcast(failure):
            raise ExportError(f"callbacks.hf_export.folder: {failure}")
