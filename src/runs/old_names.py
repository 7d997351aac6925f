"""Names in the configs of old run folders, as they are now: an old run is still evaluated, reported, exported, resumed.

`old_names.yaml` has the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_NOW: Mapping[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def new_target(target: str) -> str:
    """The name that a config's `_target_` has now.

    >>> new_target("src.models.lora.LoraSettings"), new_target("lightning.Trainer")
    ('src.models.loading.lora.LoraSettings', 'lightning.Trainer')
    """
    module, _, name = target.rpartition(".")
    return _NOW["targets"].get(target, f"{_NOW['modules'].get(module, module)}.{name}")


def with_new_names(config: Any, keys: Mapping[str, str | None] = _NOW["keys"]) -> Any:
    """A config of plain values with today's targets, keys and values; a new key that is there already counts.

    >>> with_new_names({"a": {"old": {"_target_": "src.models.lora.LoraSettings"}}}, {"a.old": "b.new"})
    {'a': {}, 'b': {'new': {'_target_': 'src.models.loading.lora.LoraSettings'}}}
    """
    config = _with_new_targets(config)
    for old, new in keys.items():
        section, key = _section(config, old)
        if section is not None and key in section:
            value = section.pop(key)
            if new is not None:
                section, key = _section(config, new, make=True)
                section.setdefault(key, value)
    for key, values in _NOW["values"].items():
        section, name = _section(config, key)
        if section is not None and name in section:
            section[name] = values.get(section[name], section[name])
    for key, value in _NOW["added"].items():
        section, name = _section(config, key)
        if section is not None:
            section.setdefault(name, value)
    return config


def _section(config: Any, key: str, *, make: bool = False) -> tuple[Any, str]:
    """The section that a key is in, None if it is not there and not to be made; and the key's name in it."""
    *sections, name = key.split(".")
    for part in sections:
        config = config.setdefault(part, {}) if make else config.get(part) if isinstance(config, dict) else None
    return (config if isinstance(config, dict) else None), name


def _with_new_targets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: new_target(entry) if key == "_target_" and isinstance(entry, str) else _with_new_targets(entry)
            for key, entry in value.items()
        }
    return [_with_new_targets(entry) for entry in value] if isinstance(value, list) else value
