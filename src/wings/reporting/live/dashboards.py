"""Figures, texts and tables in the loggers that can show them: TensorBoard and W&B. Calls their API, nothing else.

A logger of another kind gets nothing. The step is the rollout step, as in `Training._log_step`: both loggers put it
on the axis that their numbers have, which is `trainer/global_step` in W&B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src.wings.reporting.overview import table as markdown_table

Cell = str | float | None


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_STYLE = (
    "<style>body { font: 14px/1.5 system-ui, sans-serif; margin: 1em } table { border-collapse: collapse } "
    "th, td { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left } pre { overflow-x: auto }</style>"
)


class TensorBoardDashboard:
    """TensorBoard's tabs Images and Text; it has no tables, so these are texts, with long cells cut in their middle."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show a picture, [height, width, 3]."""
        self._logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text in Markdown."""
        self._logger.experiment.add_text(name, text, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Show a table; texts of cells are plain."""
        self.text(name, markdown_table(columns, rows), step)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Do nothing: it has no filters, and the config is a text alone."""


class WandbDashboard:
    """W&B's media panels and tables; texts are HTML, since it logs no Markdown."""

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger

    def image(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show a picture, [height, width, 3]."""
        self._logger.log_image(name, [pixels], step)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text in Markdown."""
        import wandb  # takes a second, which other loggers need not

        page: Any = wandb.Html(_STYLE + _MARKDOWN.render(text))  # Lightning's type of metrics has numbers only
        self._logger.log_metrics({name: page}, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int) -> None:
        """Show a table; texts of cells are plain."""
        self._logger.log_table(name, list(columns), list(map(list, rows)), step=step)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Note the run's config, for filters and groups."""
        self._logger.log_hyperparams(dict(values))


Dashboard = TensorBoardDashboard | WandbDashboard


def dashboards_of(loggers: Sequence[Logger]) -> list[Dashboard]:
    """Those of the loggers that can show more than numbers.

    >>> from lightning.pytorch.loggers import CSVLogger
    >>> dashboards_of([CSVLogger(".")])
    []
    """
    found: list[Dashboard] = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            found.append(TensorBoardDashboard(logger))
        elif isinstance(logger, WandbLogger):
            found.append(WandbDashboard(logger))
    return found


def show_figure(dashboards: Sequence[Dashboard], name: str, figure: Figure, step: int, dpi: int = 100) -> None:
    """Draw a figure, which is not pyplot's, once for all of them, and let go of what it holds."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    figure.clear()
    for dashboard in dashboards:
        dashboard.image(name, pixels, step)
