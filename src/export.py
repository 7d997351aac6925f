"""Export a model: `python src/export.py model=… output=FOLDER`. The work is in `wings/exporting/run.py`."""

from __future__ import annotations

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig  # noqa: E402

from src.config.checks import check_keys  # noqa: E402
from src.config.command_line import entry_point, quick_imports  # noqa: E402


@hydra.main(version_base="1.3", config_path="../configs", config_name="export.yaml")
def main(config: DictConfig) -> None:
    """Command line."""
    check_keys(config, "export.yaml")
    with quick_imports():
        from src.wings.exporting.run import export_model

    export_model(config)


if __name__ == "__main__":
    with entry_point("export.yaml"):
        main()
