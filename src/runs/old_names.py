"""Names in the configs of old run folders, as they are now: an old run is still evaluated, reported, exported, resumed.

Extend the tables when a class that a config names moves, or a key gets another name; entries stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MODULES: Mapping[str, str] = {
    "src.callbacks.benchmark": "src.wings.evaluation.callback",
    "src.callbacks.hf_export": "src.wings.exporting.callback",
    "src.callbacks.live_figures": "src.wings.reporting.live.callback",
    "src.callbacks.reasoning_share": "src.wings.theory.reasoning_share",
    "src.callbacks.variance_meter": "src.wings.theory.variance_meter",
    "src.data.sources.synthetic": "src.data.sources.synthetic.source",
    "src.evaluation.answering": "src.wings.evaluation.answering",
    "src.evaluation.api_bank": "src.wings.evaluation.api_bank",
    "src.evaluation.bfcl.benchmark": "src.wings.evaluation.bfcl.bfcl",
    "src.evaluation.bfcl.sandbox": "src.environments.bfcl.sandbox",
    "src.evaluation.comparison": "src.wings.comparing.comparison",
    "src.evaluation.synthetic": "src.wings.evaluation.synthetic",
    "src.models.lora": "src.models.loading.lora",
    "src.models.optimizers": "src.training.optimizers",
    "src.models.policy_config": "src.models.loading.policy_config",
    "src.models.settings": "src.training.settings",
    "src.models.sharding": "src.models.loading.sharding",
    "src.models.warm_start": "src.training.warm_start",
    "src.rewards.published": "src.wings.published.reward",
    "src.rollout.native": "src.rollout.native.engine",
    "src.rollout.vllm": "src.rollout.vllm.engine",
    "src.rollout.vllm_server": "src.rollout.vllm.server",
}
"""Old module -> new module of the same classes."""

_TARGETS: Mapping[str, str] = {
    "src.chatting.toolboxes.BfclToolbox": "src.environments.bfcl.world.BfclWorld",
    "src.chatting.toolboxes.SyntheticToolbox": "src.environments.synthetic.synthetic_world",
}
"""Old target -> new target, where more than the module has another name."""

_KEYS: Mapping[str, str | None] = {"rollout.cuda_graphs": None}
"""Old key -> new key, both in full (`section.key`); None: it is gone."""

_VALUES: Mapping[tuple[str, str], str] = {
    ("algorithm.regions", "published"): "src.wings.published.regions.published_regions",
}
"""(Key, old value) -> new value."""


def new_target(target: str) -> str:
    """The name that a config's `_target_` has now.

    >>> new_target("src.models.lora.LoraSettings"), new_target("lightning.Trainer")
    ('src.models.loading.lora.LoraSettings', 'lightning.Trainer')
    """
    module, _, name = target.rpartition(".")
    return _TARGETS.get(target, f"{_MODULES.get(module, module)}.{name}")


def with_new_names(config: Any, keys: Mapping[str, str | None] = _KEYS) -> Any:
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
    for (key, old), value in _VALUES.items():
        section, name = _section(config, key)
        if section is not None and section.get(name) == old:
            section[name] = value
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
