"""Run folders that can be shown: the home folder of whoever trains is written as `~`, and read back as what it is here.

The only place that knows how run configs are written. Touches the files that it is given.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.runs.old_names import with_new_names


def without_home(text: str, home: str | None = None) -> str:
    """Text with the home folder as `~`.

    Args:
        text: any.
        home: None: this user's.

    >>> without_home("policy.path=/srv/ann/m data=/srv/anna", "/srv/ann")
    'policy.path=~/m data=/srv/anna'
    """
    home = str(Path.home()) if home is None else home
    return text if home in ("", "/") else re.sub(re.escape(home) + r"(?![\w.-])", "~", text)


def save_config(config: DictConfig, file: Path) -> None:
    """Write a config, resolved, without the home folder."""
    plain = OmegaConf.to_container(config, resolve=True)
    OmegaConf.save(OmegaConf.create(_mapped(plain, without_home)), file)


def load_config(file: Path, *, expand: bool = True) -> DictConfig | ListConfig:
    """Read such a config, of this version or an older one, with today's names.

    Args:
        file: YAML.
        expand: `~` becomes this user's home folder; otherwise it stays, so that the config can be shown.

    Raises:
        OSError, ValueError, OmegaConfBaseException: see `OmegaConf.load`.
    """
    plain = with_new_names(OmegaConf.to_container(OmegaConf.load(file)))
    loaded = OmegaConf.create(_mapped(plain, _with_home) if expand else plain)
    assert isinstance(loaded, DictConfig | ListConfig)
    return loaded


class HideHome(logging.Filter):
    """Takes the home folder out of what a handler writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        message = record.getMessage()
        if (shown := without_home(message)) != message:
            record.msg, record.args = shown, ()
        return True


def _with_home(text: str) -> str:
    return str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_mapped(entry, change) for entry in value]
    return change(value) if isinstance(value, str) else value
