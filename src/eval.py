"""Evaluate a model: `python src/eval.py policy=tiny benchmark=synthetic`. The work is in `wings/evaluation/run.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig, OmegaConf  # noqa: E402

from src.config.checks import check_composed  # noqa: E402
from src.config.command_line import entry_point, quick_imports  # noqa: E402
from src.wings.evaluation.evaluation_folder import FINGERPRINT  # noqa: E402


def _evaluation_folder(resume: str | None, new: str) -> str:
    """Hydra's run folder: that of the evaluation to resume, so that log and results stay together."""
    return resume if resume is not None and (Path(resume) / FINGERPRINT).is_file() else new


OmegaConf.register_new_resolver("evaluation_folder", _evaluation_folder, replace=True)


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval.yaml")
def main(config: DictConfig) -> None:
    """Command line; an interrupted evaluation ends with the shell's code for Ctrl-C."""
    check_composed(config, "eval.yaml")
    with quick_imports():
        from src.wings.evaluation.run import evaluate

    try:
        evaluate(config)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    with entry_point("eval.yaml"):
        main()
