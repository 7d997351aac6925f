"""Colours of the report from `palette.yaml`, for the page in both themes and for figures. Methods have dashes too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Tone(NamedTuple):
    """One colour on a light and on a dark page."""

    light: str
    dark: str


def _tones(section: Mapping[str, Any]) -> Mapping[str, Tone]:
    return {name: Tone(*pair) for name, pair in section.items()}


_FILE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PAGE, REGIONS, _SOFT = (_tones(_FILE[section]) for section in ("page", "regions", "soft"))
METHODS: Sequence[Tone] = [Tone(*pair) for pair in _FILE["methods"]]
DASHES: Sequence[tuple[int, ...]] = ((), (6, 3), (2, 2), (8, 3, 2, 3))
"""Lengths of strokes and gaps in points; the first is solid."""


def method_style(index: int) -> tuple[Tone, tuple[int, ...]]:
    """Colour and dash pattern of a report's index-th method.

    >>> method_style(1)
    (Tone(light='#a83c00', dark='#f08a4b'), (6, 3))
    >>> method_style(len(METHODS))[1]
    (6, 3)
    """
    return METHODS[index % len(METHODS)], DASHES[(index + index // len(METHODS)) % len(DASHES)]


def custom_properties(theme: str) -> str:
    """The palette of the `light` or `dark` theme as CSS declarations.

    >>> custom_properties("dark")[:16]
    '--page: #15181c;'
    """
    tones = {
        **PAGE,
        **{f"method-{index}": tone for index, tone in enumerate(METHODS)},
        **{f"region-{region}": tone for region, tone in REGIONS.items()},
        **{f"region-{region}-soft": tone for region, tone in _SOFT.items()},
    }
    return " ".join(f"--{name.replace('_', '-')}: {getattr(tone, theme)};" for name, tone in tones.items())
