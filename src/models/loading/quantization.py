"""Quantised weights: of checkpoints two kinds are read as plain ones; under adapters weights may be packed in 4 bits.

Imports no model code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from src.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def four_bit(dtype: torch.dtype, *, sharded: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` that keep a checkpoint's plain weights in 4 bits, doubly quantised NF4.

    Args:
        dtype: in which they are multiplied.
        sharded: over ranks.

    Raises:
        ConfigError: no CUDA device, no bitsandbytes, or a sharded policy.
    """
    if not on_cuda():
        raise ConfigError(
            "policy.four_bit=true: expected a CUDA device, found none: elsewhere bitsandbytes samples and scores in "
            "another precision than it trains in. Set policy.four_bit=false."
        )
    if sharded:
        raise ConfigError(
            "policy.four_bit=true: expected a policy that lies whole on each device, found a sharded one. Set "
            "trainer=default or trainer=ddp, or policy.four_bit=false."
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "policy.four_bit=true: the package bitsandbytes is not installed. Install it: pip install bitsandbytes."
        )
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    return {_KEY: settings, **device}


def on_cuda() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


def plain_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight of 4 bits multiplied out."""
    from bitsandbytes.functional import dequantize_4bit

    packed: Any = weight
    return dequantize_4bit(packed.data, packed.quant_state).to(dtype)


def is_packed(weight: object) -> bool:
    """Whether a parameter holds 4 bits a weight, and how to read them."""
    return getattr(weight, "quant_state", None) is not None


@contextmanager
def as_plain(model: PreTrainedModel) -> Iterator[None]:
    """In it a model with packed weights is saved like any other: the weights that are given are plain ones."""
    owner: Any = model
    quantizer, settings = getattr(model, "hf_quantizer", None), getattr(model.config, _KEY, None)
    if quantizer is None:
        yield
        return
    try:
        owner.hf_quantizer = None
        del model.config.quantization_config
        yield
    finally:
        owner.hf_quantizer, model.config.quantization_config = quantizer, settings


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
