"""Colours of the report, for the page in both themes and for figures. No files, no drawing.

Methods take colours that are told apart with any colour vision and have a contrast of at least 3 with the page; each
has a dash pattern too. Regions have a colour for lines and text, and a soft one to stand behind text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from src.protocol.types import Region


class Tone(NamedTuple):
    """One colour on a light and on a dark page."""

    light: str
    dark: str


PAGE: Mapping[str, Tone] = {
    "page": Tone("#fdfdfc", "#15181c"),
    "raised": Tone("#f3f3f0", "#1e2227"),
    "ink": Tone("#1c1f23", "#e4e6e8"),
    "muted": Tone("#5b6169", "#9aa2ac"),
    "rule": Tone("#d8d9d5", "#343a42"),
    "accent": Tone("#1f5f99", "#7db8ee"),
    "good": Tone("#1a6e4a", "#6cc79a"),
    "bad": Tone("#a8401a", "#f0936a"),
}

METHODS: Sequence[Tone] = (
    Tone("#0067a5", "#5eb1ef"),
    Tone("#a83c00", "#f08a4b"),
    Tone("#0d6b4a", "#b4f5cf"),
    Tone("#c26ad6", "#a86fe8"),
    Tone("#4a0d24", "#ff9fbe"),
    Tone("#2a97a8", "#2a9c86"),
    Tone("#5a6472", "#f4f6f8"),
    Tone("#ab8d00", "#dcc02f"),
)
"""By the order in which methods appear; after the last, from the first again with another dash pattern."""

REGIONS: Mapping[Region, Tone] = {
    Region.FORMAT: Tone("#5a6472", "#c3c9d0"),
    Region.TOOL_NAME: Tone("#0067a5", "#5eb1ef"),
    Region.TOOL_PARAMETERS: Tone("#a83c00", "#f08a4b"),
    Region.REASONING: Tone("#c26ad6", "#a86fe8"),
    Region.RESPONSE: Tone("#0d6b4a", "#b4f5cf"),
    Region.OTHER: Tone("#ab8d00", "#dcc02f"),
}

SOFT: Mapping[Region, Tone] = {
    Region.FORMAT: Tone("#e1e4e8", "#3a4149"),
    Region.TOOL_NAME: Tone("#a9d2f7", "#0d4270"),
    Region.TOOL_PARAMETERS: Tone("#ffcf9e", "#7a3d0c"),
    Region.REASONING: Tone("#f0d9f7", "#6b3f86"),
    Region.RESPONSE: Tone("#cdf2db", "#1a5c44"),
    Region.OTHER: Tone("#f5eb8c", "#46480e"),
}

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


def region_style(label: str) -> Tone:
    """Colour of a region by its label.

    >>> region_style("tool_name").light
    '#0067a5'
    """
    return REGIONS[Region[label.upper()]]


def custom_properties(theme: str) -> str:
    """The palette of the `light` or `dark` theme as CSS declarations.

    >>> custom_properties("dark")[:16]
    '--page: #15181c;'
    """
    tones = {
        **PAGE,
        **{f"method-{index}": tone for index, tone in enumerate(METHODS)},
        **{f"region-{_css(region)}": tone for region, tone in REGIONS.items()},
        **{f"region-{_css(region)}-soft": tone for region, tone in SOFT.items()},
    }
    return " ".join(f"--{name}: {getattr(tone, theme)};" for name, tone in tones.items())


def _css(region: Region) -> str:
    return region.label.replace("_", "-")
