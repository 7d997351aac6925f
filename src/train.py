"""Train a policy: `python src/train.py experiment=qwen3_8b`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)
if (folder_of_plugins := str(Path(__file__).resolve().parent / "wings/sweeping")) not in sys.path:
    sys.path.append(folder_of_plugins)  # of hydra_plugins, where Hydra looks for sweepers

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from src.config.checks import check_composed  # noqa: E402
from src.config.command_line import entry_point, quick_imports  # noqa: E402
from src.runs.launching import check_launch  # noqa: E402


def train(config: DictConfig) -> dict[str, float]:
    """Check the config, predict the memory, and train; nothing is loaded before all checks have passed.

    Returns:
        Metrics of the last validation and benchmarks; nothing if `dry_run` asks for the checks alone.

    Raises:
        ConfigError: the config cannot run, or its memory will not fit and `preflight.action` is `error`.
        BenchmarkDataError: the data of a benchmark is not there.
        DataError: a record of the corpus cannot be used.
    """
    with quick_imports():
        from src.config.policy_checks import check_architecture
        from src.config.rules import check_config
    check_config(config)
    check_architecture(config)
    if config.dry_run:
        with quick_imports():
            from src.wings.timing.prediction import dry_run
        dry_run(config)
        return {}
    if config.preflight.action != "off":
        with quick_imports():
            from src.wings.memory.preflight import preflight
        preflight(config)
    with quick_imports():
        from src.training.run import fit
    return fit(config)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(config: DictConfig) -> float | None:
    """Command line; returns the metric that a sweep optimises.

    Raises:
        ValueError: `optimized_metric` is none that was measured.
    """
    check_launch(os.environ, HydraConfig.get().overrides.hydra)
    check_composed(config, "train.yaml")  # before PyTorch is imported
    metrics = train(config)
    if config.optimized_metric is None or config.dry_run:
        return None
    if config.optimized_metric not in metrics:
        raise ValueError(f"optimized_metric: expected one of {sorted(metrics)}, found '{config.optimized_metric}'.")
    return metrics[config.optimized_metric]


if __name__ == "__main__":
    with entry_point("train.yaml"):
        main()
