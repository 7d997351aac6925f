"""An export: a checkpoint to a folder that transformers and vLLM load."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from omegaconf import DictConfig, OmegaConf

from src.config.checks import check_keys
from src.data.templates.native import NativeTemplate
from src.errors import ConfigError
from src.models.checkpoints.reading import checkpoint_progress
from src.rollout.engine import SamplingParams
from src.runs.line_file import read_lines
from src.runs.summary import command_line, versions
from src.wings.evaluation.resolving import LoadedModel, ModelSource, load_source, resolve_model, run_config
from src.wings.exporting.folder import (
    ExportError,
    check_free,
    gathered_weights,
    generation_config,
    write_export,
)
from src.wings.exporting.model_card import CardFacts, Scores, model_card

log = logging.getLogger(__name__)


def export_model(config: DictConfig) -> Path:
    """Write the model that the config names, adapters merged, with its tokenizer and a model card; return the folder.

    Raises:
        ConfigError: no folder to write to, one that holds something already, or a model that is not there.
        ExportError: the folder cannot be written.
        ValueError: a checkpoint that does not fit its run's config.
    """
    check_keys(config, "export.yaml")
    if OmegaConf.is_missing(config, "output"):
        raise ConfigError("output: expected a folder to write to, found nothing. E.g. output=logs/exported/my_model")
    folder = Path(config.output).expanduser()
    try:
        check_free(folder)
    except ExportError as error:
        raise ConfigError(f"output={error}") from error
    source = resolve_model(config)
    loaded = load_source(source)
    trained = run_config(source.checkpoint) if source.checkpoint is not None else {}
    sampling = {key: trained["sampling"][key] for key in ("temperature", "top_p", "top_k")} if trained else None
    write_export(
        loaded.model,
        loaded.tokenizer,
        gathered_weights(loaded.model),
        folder,
        card=model_card(_facts(source, loaded, trained)),
        generation=generation_config(
            loaded.model,
            loaded.tokenizer,
            loaded.stop_token_ids,
            None if sampling is None else SamplingParams(**sampling),
        ),
        prompt=source.prompt,
    )
    log.info("%s is in '%s'.", source.name, folder)
    if config.push_to_hub is not None:
        push_to_hub(folder, str(config.push_to_hub))
    if settings := source.prompt.get("chat_template_kwargs"):
        log.info("Its prompts were rendered with chat_template_kwargs=%s: use them again.", json.dumps(settings))
    return folder


def push_to_hub(folder: Path, name: str) -> None:
    """Upload a folder to the hub as `OWNER/NAME`, private where it is new; the token is that of `hf auth login`.

    Raises:
        ExportError: the hub refuses it or cannot be reached; the folder stays.
    """
    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # of the hub's client, and of the library under it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"push_to_hub={name}: {reason}. The folder '{folder}' is complete: push it after `hf auth login` with "
            f"`hf upload {name} {folder}`."
        ) from error
    log.info("Pushed to the hub as %s.", name)


def _facts(source: ModelSource, loaded: LoadedModel, trained: Mapping[str, Any]) -> CardFacts:
    """What the run's files tell, of the moment of the checkpoint."""
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    spoken: dict[str, Any] = {}
    if source.prompt.get("layout") == "native":
        settings = source.prompt.get("chat_template_kwargs")
        template = NativeTemplate(loaded.tokenizer, settings, format_name=source.prompt.get("format"))
        spoken = {"format": template.format.name, "thinks": template.thinks}
    if source.checkpoint is None:
        config = {"policy": asdict(source.policy), "prompt": dict(source.prompt)}
        return CardFacts(source.name, config, dtype=dtype, command=command_line(), versions=versions(), **spoken)
    run = source.checkpoint.parents[1]
    progress = checkpoint_progress(source.checkpoint)
    before, after = run_scores(run / "metrics.jsonl", progress.rollout_steps)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8")) if (run / "summary.json").is_file() else {}
    return CardFacts(
        name=source.name,
        config=trained,
        rollout_steps=progress.rollout_steps,
        optimizer_steps=progress.optimizer_steps,
        before=before,
        after=after,
        dropped=summary.get("dropped_prompts", {}),
        dtype=dtype,
        command=summary.get("command", command_line()),
        versions=summary.get("versions", versions()),
        **spoken,
    )


def run_scores(path: Path, rollout_step: int) -> tuple[list[Scores], list[Scores]]:
    """Scores before a run's first rollout step, and the last ones by `rollout_step`, from its `metrics.jsonl`."""
    before: dict[str, Scores] = {}
    after: dict[str, Scores] = {}
    lines, _ = read_lines(path, ("event", "rollout_step")) if path.is_file() else ([], 0)
    for record in lines:
        event, step = record.pop("event"), record.pop("rollout_step")
        if event in ("validation", "benchmark") and step <= rollout_step:
            (after if step else before)[event] = Scores(step, record)
    return list(before.values()), list(after.values())
