"""Names in the configs of old run folders, as they are now: an old run is still evaluated, reported, exported, resumed.

`old_names.yaml` has the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_NOW: Mapping[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def new_target(target: str) -> str:
    """The name that a config's `_target_` has now.

    >>> new_target("src.models.lora.LoraSettings"), new_target("lightning.Trainer")
    ('src.models.loading.lora.LoraSettings', 'lightning.Trainer')
    """
    module, _, name = target.rpartition(".")
    return _NOW["targets"].get(target, f"{_NOW['modules'].get(module, module)}.{name}")


def with_new_names(config: Any, keys: Mapping[str, str] = _NOW["keys"]) -> Any:
    """A config of plain values with today's targets and keys; where old and new key are both there, the new one counts.

    >>> with_new_names({"a": {"old": {"_target_": "src.models.lora.LoraSettings"}}}, {"a.old": "b.new"})
    {'a': {}, 'b': {'new': {'_target_': 'src.models.loading.lora.LoraSettings'}}}
    """
    config = _with_new_targets(config)
    for old, new in keys.items():
        *sections, key = old.split(".")
        section = config
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            value = section.pop(key)
            *sections, key = new.split(".")
            section = config
            for name in sections:
                section = section.setdefault(name, {})
            section.setdefault(key, value)
    return config


def _with_new_targets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: new_target(entry) if key == "_target_" and isinstance(entry, str) else _with_new_targets(entry)
            for key, entry in value.items()
        }
    return [_with_new_targets(entry) for entry in value] if isinstance(value, list) else value
