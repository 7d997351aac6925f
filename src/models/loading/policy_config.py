"""Settings of a policy. Imports no model code: configs are checked, and memory is planned, before that is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from src.errors import ConfigError
from src.models.loading.lora import LoraSettings

Precision = Literal["bfloat16", "float32", "auto"]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Where a policy comes from and how it runs. One of `path`, `package` and `hub_id` is used, in that order.

    Attributes:
        hub_id: `owner/name` on the Hugging Face hub.
        path: local folder in the layout of `save_pretrained`, or holding `gguf_file`.
        package: installed Python package that holds `gguf_file`; it is located, not imported.
        gguf_file: a GGUF file in the package, in `path` (where that has no config.json) or in the hub repository.
        cache_dir: where GGUF files are kept after their conversion; a folder in Hugging Face's cache when None.
        weights: `pretrained`, or `random` for the architecture alone.
        dtype: of the weights; `auto` takes the checkpoint's.
        trust_remote_code: run Python code that comes with the checkpoint.
        rows: see `Policy`; `auto`: packed where `config.guard` finds that right, else separate.
        gradient_checkpointing: see `Policy`.
        compile_layers: see `Policy`.
        head_chunk: see `Policy`.
        dropout: see `Policy`.
        router_loss: see `Policy`.
        four_bit: keep the frozen weights under adapters in 4 bits (NF4, QLoRA: arXiv 2305.14314).
        lora: adapters to train instead of the weights.
    """

    hub_id: str | None = None
    path: str | Path | None = None
    package: str | None = None
    gguf_file: str | None = None
    cache_dir: str | Path | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: Precision = "bfloat16"
    trust_remote_code: bool = False
    rows: Literal["auto", "packed", "separate"] = "auto"
    gradient_checkpointing: bool | Literal["full", "selective"] = False
    compile_layers: bool = False
    head_chunk: int | None = None
    dropout: bool = False
    router_loss: float = 0.0
    four_bit: bool = False
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise ConfigError(f"policy.dtype: expected one of {get_args(Precision)}, found '{self.dtype}'.")
        if self.weights not in ("pretrained", "random"):
            raise ConfigError(f"policy.weights: expected 'pretrained' or 'random', found '{self.weights}'.")
        if self.rows not in ("auto", "packed", "separate"):
            raise ConfigError(f"policy.rows: expected 'auto', 'packed' or 'separate', found '{self.rows}'.")
        if self.gradient_checkpointing not in (False, True, "full", "selective"):
            raise ConfigError(
                "policy.gradient_checkpointing: expected false, 'full' or 'selective' (true is 'full'), found "
                f"'{self.gradient_checkpointing}'."
            )
        if self.compile_layers and self.four_bit:
            raise ConfigError(
                "policy.compile_layers=true: expected weights that PyTorch's compiler reads, found "
                "policy.four_bit=true. Set one of them to false."
            )
        if self.four_bit and (self.lora is None or self.weights != "pretrained"):
            raise ConfigError(
                "policy.four_bit=true: expected adapters on pretrained weights, because weights of 4 bits take no "
                "updates. Set policy/lora=default and policy.weights=pretrained."
            )
        if self.router_loss < 0:
            raise ConfigError(f"policy.router_loss: expected at least 0, found {self.router_loss}.")
        if self.path is None and self.package is None and self.hub_id is None:
            raise ConfigError("policy: expected hub_id, path or package, found none of them.")
        if self.package is not None and self.gguf_file is None:
            raise ConfigError(f"policy.package is '{self.package}', but policy.gguf_file, the file in it, is missing.")
