"""Low-rank adapters inside a model, and the weights of a model as every engine and file format wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.loading.quantization import is_packed, plain_weight
from src.models.structure import decoder_of, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters to train instead of the weights.

    Attributes:
        rank: of the update B A.
        alpha: the update counts alpha / rank.
        dropout: on the adapter's input, where `policy.dropout` is true.
        target_modules: last parts of the names of the linear layers to adapt, or `all-linear`: those of the decoder's
            layers but routers. Experts that are stacked in one tensor stay frozen.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"policy.lora: expected rank >= 1 and dropout in [0, 1), found {self.rank} and {self.dropout}."
            )


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put adapters into the model in place and freeze everything else. Adapters are float32: they take small updates.

    The model's class and its forward stay what they were; only the decoder's layers are adapted.

    Raises:
        ConfigError: no layer has one of the target names.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a third of a second, which runs without adapters save

    wanted = settings.target_modules
    layers = nn.ModuleList(layers_of(decoder_of(model)))  # by themselves: of whole models peft adapts experts too
    targets = [name for name in _linear_layers(layers) if wanted == "all-linear" or name.rpartition(".")[2] in wanted]
    if not targets:
        raise ConfigError(f"policy.lora.target_modules: {wanted} fits no layer of {type(model).__name__}.")
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    model.requires_grad_(False)
    inject_adapter_in_model(adapters, layers, adapter_name=_ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _linear_layers(layers: nn.Module) -> Iterator[str]:
    """Names of what may be adapted: not routers, nor what a state-space model's kernels read past its forward."""
    for path, owner in layers.named_modules():
        recurrent = hasattr(owner, "A_log") and hasattr(owner, "D")
        for name, module in owner.named_children():
            if isinstance(module, nn.Linear) and "router" not in name and not (recurrent and name == "out_proj"):
                yield f"{path}.{name}"


def has_adapter(module: nn.Module) -> bool:
    """Whether a module is a layer that `add_lora` has put an adapter into."""
    return hasattr(module, "lora_A")


def merged_named_tensors(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """The model's weights under the names of its plain architecture, adapters merged, shards gathered.

    Names and tensors are those of a state dict, so tied heads are among them. All ranks of a sharded model must iterate
    together. Nothing is copied where there is nothing to merge or gather.

    Args:
        model: as it is trained.
        dtype: that their taker converts them to. Shards of a wider type are converted before they are gathered, which
            gives the same numbers and sends half of the bytes; but not where an adapter is merged into them.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if has_adapter(module)}
    packed = {name: p for name, p in model.named_parameters(remove_duplicate=False) if is_packed(p)}
    state = model.state_dict()
    for name, tensor in state.items():
        if ".lora_" in name or _of_packed(name, packed):
            continue
        owner, found, leaf = name.partition(".base_layer.")
        merged = bool(found) and leaf == "weight"
        narrow = None if merged else dtype
        weight = plain_weight(packed[name], model.dtype) if name in packed else _full(tensor, narrow)
        if merged:
            down = _full(state[f"{owner}.lora_A.{_ADAPTER}.weight"]).float()
            up = _full(state[f"{owner}.lora_B.{_ADAPTER}.weight"]).float()
            weight = (weight.float() + layers[owner].scaling[_ADAPTER] * (up @ down)).to(weight.dtype)
        yield (f"{owner}.{leaf}" if found else name), weight


def _of_packed(name: str, packed: Mapping[str, nn.Parameter]) -> bool:
    """Whether an entry of a state dict tells how to read a packed weight, such as `….weight.absmax`."""
    owner, found, _ = name.rpartition(".weight.")
    return bool(found) and f"{owner}.weight" in packed


def whole_state(model: PreTrainedModel, *, keep: bool = True) -> dict[str, Tensor]:
    """The state dict as it is, adapters apart, on the CPU, shards gathered; a tied head under its first name only.

    Args:
        model: all ranks of a sharded one must call together.
        keep: False on the ranks that only take part in the gathering; they get an empty dict.
    """
    names = {name for name, p in model.named_parameters() if not is_packed(p)} | {n for n, _ in model.named_buffers()}
    state = {}
    for name, tensor in model.state_dict().items():
        if name in names:
            whole = _full(tensor)
            if keep:
                state[name] = whole.cpu()
    return state


@torch.no_grad()
def _full(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The whole tensor of a shard, in `dtype` where that is narrower; the tensor itself without sharding."""
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach()
    narrower = dtype is not None and tensor.is_floating_point() and dtype.itemsize < tensor.dtype.itemsize
    return cast(Any, tensor.to(dtype) if narrower else tensor).full_tensor()
