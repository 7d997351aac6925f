"""Export a checkpoint to a folder that transformers and vLLM load. `python src/export.py model=… output=FOLDER`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig, OmegaConf  # noqa: E402

from src.models.loading import export  # noqa: E402
from src.models.resolving import load_source, resolve_model  # noqa: E402
from src.utils.config_checks import ConfigError  # noqa: E402

log = logging.getLogger(__name__)


def export_model(config: DictConfig) -> Path:
    """Write the model that the config names, adapters merged, with its tokenizer; return the folder.

    Raises:
        ConfigError: no folder to write to, one that holds a model already, or a model that is not there.
        ValueError: a checkpoint that does not fit its run's config.
    """
    if OmegaConf.is_missing(config, "output"):
        raise ConfigError("output: expected a folder to write to, found nothing. E.g. output=logs/exported/my_model")
    folder = Path(config.output).expanduser()
    if (folder / "config.json").exists():
        raise ConfigError(f"output='{folder}': expected a new folder, found a model in it. Choose another one.")
    source = resolve_model(config)
    loaded = load_source(source)
    export(loaded.model, loaded.tokenizer, folder)
    log.info("%s is in '%s'.", source.name, folder)
    if settings := source.prompt.get("chat_template_kwargs"):
        log.info("Its prompts were rendered with chat_template_kwargs=%s: use them again.", json.dumps(settings))
    return folder


@hydra.main(version_base="1.3", config_path="../configs", config_name="export.yaml")
def main(config: DictConfig) -> None:
    """Command line."""
    export_model(config)


if __name__ == "__main__":
    main()
