"""Train a policy. `python src/train.py experiment=qwen3_8b`; `src/training/run.py` is what happens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)
if (folder_of_plugins := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.append(folder_of_plugins)  # of hydra_plugins, where Hydra looks for sweepers

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from src.utils.command_line import entry_point, quick_imports  # noqa: E402
from src.utils.config_checks import check_composed  # noqa: E402
from src.utils.launching import check_launch  # noqa: E402


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(config: DictConfig) -> float | None:
    """Command line; returns the metric that a sweep optimises.

    Raises:
        ValueError: `optimized_metric` is none that was measured.
    """
    check_launch(os.environ, HydraConfig.get().overrides.hydra)
    check_composed(config, "train.yaml")
    with quick_imports():
        from src.training.checks import ready
    if not ready(config):
        return None
    with quick_imports():
        from src.training.run import fit

    metrics = fit(config)
    if config.optimized_metric is None:
        return None
    if config.optimized_metric not in metrics:
        raise ValueError(f"optimized_metric: expected one of {sorted(metrics)}, found '{config.optimized_metric}'.")
    return metrics[config.optimized_metric]


if __name__ == "__main__":
    with entry_point("train.yaml"):
        main()
