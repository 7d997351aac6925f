"""Checkpoints with quantised weights: two kinds are read as plain weights, the others are refused.

Imports no model code.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from src.errors import ConfigError

_READ = ("mxfp4", "fp8")
"""Values of quantization_config.quant_method whose weights transformers multiplies out on any device."""
_KEY = "quantization_config"


def check_quantization(architecture: PretrainedConfig, source: str, *, sharded: bool) -> None:
    """Check that a checkpoint's weights can be trained.

    Args:
        architecture: its config.json.
        source: folder or hub id.
        sharded: it is read tensor by tensor.

    Raises:
        ConfigError: they are quantised in another way than those of `_READ`, or in any way where `sharded`.
    """
    method = quantization_of(architecture)
    if method is None:
        return
    found = f"policy: '{source}': quantization_config.quant_method in its config.json is '{method}', expected"
    if method not in _READ:
        raise ConfigError(
            f"{found} none, or one of {', '.join(_READ)}: such weights take no updates. Choose the checkpoint that it "
            "was made from (quantization_config.quant_method is absent there)."
        )
    if sharded:
        raise ConfigError(
            f"{found} none, because a sharded policy is read tensor by tensor. Load and save it dequantised first:\n"
            f"  python src/export.py model={source} dtype=bfloat16 output=FOLDER\n"
            "  python src/train.py policy.path=FOLDER …"
        )


def quantization_of(architecture: PretrainedConfig) -> str | None:
    """How a checkpoint's weights are quantised; None: they are not."""
    settings = _settings(architecture)
    return None if settings is None else str(settings.get("quant_method", "not given"))


def dequantising(architecture: PretrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` that make a checkpoint's weights plain ones."""
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    made = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    method = quantization_of(architecture)
    return {} if method is None else {_KEY: made[method](dequantize=True)}


def forget_quantization(architecture: PretrainedConfig) -> None:
    """Take out of a config how weights are quantised: those of its model are not."""
    for config in (architecture, architecture.get_text_config(decoder=True)):
        if hasattr(config, _KEY):
            delattr(config, _KEY)


def _settings(architecture: PretrainedConfig) -> dict[str, Any] | None:
    for config in (architecture, architecture.get_text_config(decoder=True)):
        found = getattr(config, _KEY, None)
        if found is not None:
            return dict(found) if isinstance(found, dict) else found.to_dict()
    return None
