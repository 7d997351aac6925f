"""The formats that there are, by name."""

from __future__ import annotations

from src.errors import ConfigError, advice
from src.protocol.formats.harmony import Harmony
from src.protocol.formats.hermes import Hermes
from src.protocol.formats.llama3_json import Llama3Json
from src.protocol.formats.qwen3_xml import Qwen3Xml
from src.protocol.formats.rest import Rest
from src.protocol.output_format import OutputFormat

REST = Rest()
NATIVE: tuple[OutputFormat, ...] = (Qwen3Xml(), Hermes(), Llama3Json(), Harmony())
"""Those of models, in the order in which they are tried on a chat template."""


def format_named(name: str) -> OutputFormat:
    """The format of a name.

    Raises:
        ConfigError: there is none.
    """
    known = {one.name: one for one in (REST, *NATIVE)}
    if name not in known:
        raise ConfigError(f"prompt.format: expected one of {', '.join(known)}, found '{name}'. {advice(name, known)}")
    return known[name]
