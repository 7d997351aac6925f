"""Parts that a report page is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fragment:
    """A section of the page.

    Attributes:
        html: markup; all text in it is escaped.
        css: style rules, without the tag.
        js: a script, without the tag.
    """

    html: str
    css: str = ""
    js: str = ""


@dataclass(frozen=True, slots=True)
class InspectedRun:
    """A run whose samples can be looked at.

    Attributes:
        name: shown.
        folder: of the run.
        method: `algorithm.name` of its config.
    """

    name: str
    folder: Path
    method: str
