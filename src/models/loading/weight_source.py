"""Models without weights: built on the meta device and filled later, so that no rank holds more than it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from src.models.loading.lora import has_adapter


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the weights of a model on the meta device are.

    Attributes:
        files: name in the plain architecture's state dict -> safetensors file and name in it; empty: weights are drawn
            at random.
        where: for messages.
        made: name in that state dict -> what makes the tensor of several in files.
    """

    files: dict[str, tuple[Path, str]]
    where: str
    made: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    @classmethod
    def random(cls) -> WeightSource:
        """Weights as the architecture initialises them."""
        return cls({}, "random weights")

    @classmethod
    def of(cls, source: str | Path) -> WeightSource:
        """Safetensors files of a local folder, a single file, or a hub repository (which is downloaded).

        Raises:
            FileNotFoundError: no safetensors file there.
        """
        path = Path(source)
        if not path.exists():
            path = Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
        index = path / "model.safetensors.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return cls({name: (path / file, name) for name, file in names.items()}, str(source))
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(
                f"policy: '{source}' holds no *.safetensors, which a sharded policy is loaded from tensor by tensor. "
                "Save the model anew with transformers' save_pretrained."
            )
        return cls({name: (file, key) for file in files for name, key in _names(file).items()}, str(source))

    def named_for(self, model: PreTrainedModel) -> WeightSource:
        """The same files for a model whose checkpoints have other names, or its tensors in parts, one for each expert.

        Args:
            model: says which, as transformers knows it.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        own: dict[str, Any] = {name.replace(".base_layer.", "."): one for name, one in model.state_dict().items()}
        conversions = get_model_conversion_mapping(model)
        renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        converters = [one for one in conversions if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        files: dict[str, tuple[Path, str]] = {}
        parts: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(self.files, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
            if pattern is None or (name not in own and key in own):
                files[name if name in own else key] = self.files[key]
            else:
                parts.setdefault(name, []).append((pattern, key))

        def converted(first: str, name: str) -> Tensor:
            converter = deepcopy(by_pattern[parts[first][0][0]])
            for pattern, key in parts[first]:
                reader: Any = partial(self.read, key)
                converter.add_tensor(first, key, pattern, reader)
            found = converter.convert(first, model=model, config=model.config)[name]
            return found[0] if isinstance(found, list) else found

        made: dict[str, Callable[[], Tensor]] = {}
        for first, sources in parts.items():
            targets = by_pattern[sources[0][0]].target_patterns
            for target in targets:
                name = first.replace(targets[0], target)
                made[name] = partial(converted, first, name)
        return WeightSource(files, self.where, made)

    def read(self, name: str) -> Tensor | None:
        """One tensor with its file's shape and type, or None where there is none of that name."""
        if name in self.made:
            return self.made[name]()
        if name not in self.files:
            return None
        path, key = self.files[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def start_of(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The model's state dict as it will be once filled, a tensor at a time; what no file holds is left out."""
        for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
            ties = [other for other, one in model.named_parameters(remove_duplicate=False) if one is parameter]
            for candidate in (name, name.replace(".base_layer.", "."), *ties):
                tensor = self.read(candidate)
                if tensor is not None:
                    yield name, tensor.to(parameter.dtype)
                    break


def checkpoint_names(model: PreTrainedModel) -> Callable[[str], str]:
    """What a weight of a model is called in its checkpoints, which is what other engines look for.

    A tensor that lies there in parts, one for each expert, keeps its name: vLLM knows that one too.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    renamings = [
        conversion.reverse_transform()
        for conversion in reversed(get_model_conversion_mapping(model, add_legacy=False))
        if isinstance(conversion, WeightRenaming) and not isinstance(conversion, PrefixChange)
    ]

    def name_of(name: str) -> str:
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    return name_of


@torch.no_grad()
def fill(
    module: nn.Module, device: torch.device, weights: WeightSource | None, prefix: str, model: PreTrainedModel
) -> None:
    """Give a part of a model its weights on `device`, converted to the type that the parameters have.

    Parameters that are not on the meta device, and buffers, only move. Adapters that no file holds are initialised.

    Args:
        module: the part; what is sharded in it already stays as it is.
        device: to fill on.
        weights: None: nothing is on the meta device.
        prefix: name of the part in the model, "" for the whole.
        model: knows how its modules are initialised.

    Raises:
        ValueError: a weight that no file holds, or one of another shape.
    """

    def value(owner: nn.Module, owner_name: str, name: str, parameter: nn.Parameter) -> Tensor | None:
        if weights is None or not weights.files:
            return None
        full = f"{owner_name}.{name}"
        found = weights.read(full)
        if found is None:
            found = weights.read(full.replace(".base_layer.", "."))
        if found is None and ".lora_" not in full:
            raise ValueError(
                f"policy: {weights.where} has no tensor '{full}', which {type(model).__name__} needs. Is it a "
                "checkpoint of this architecture? If its names differ, save it anew with save_pretrained."
            )
        if found is not None and found.shape != parameter.shape:
            raise ValueError(
                f"policy: {weights.where}: '{full}' has shape {tuple(found.shape)}, expected {tuple(parameter.shape)}."
            )
        return found

    fresh = _materialise(module, device, prefix, value)
    if weights is not None and not weights.files:
        for owner in fresh:
            model._init_weights(owner)
    adapted: list[Any] = [owner for owner in module.modules() if has_adapter(owner)]
    for layer in adapted:
        for adapter, down in layer.lora_A.items():
            if down in fresh:
                layer.reset_lora_parameters(adapter, init_lora_weights=True)
    for tensor_owner in module.modules():
        for name, buffer in tensor_owner.named_buffers(recurse=False):
            setattr(tensor_owner, name, buffer.to(device))


def fill_empty(module: nn.Module, device: torch.device) -> None:
    """Give parameters on the meta device memory on `device`, uninitialised; ties stay ties. The rest moves there."""
    _materialise(module, device, "", lambda *_: None)
    module.to(device)


@torch.no_grad()
def _materialise(
    module: nn.Module, device: torch.device, prefix: str, value: Callable[..., Tensor | None]
) -> set[nn.Module]:
    """Replace meta parameters by `value`, or by uninitialised memory; the modules that got such memory are returned."""
    made: dict[int, nn.Parameter] = {}
    fresh: set[nn.Module] = set()
    for path, owner in module.named_modules(prefix=prefix):
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                continue  # sharded already
            if parameter.is_meta and id(parameter) not in made:
                given = value(owner, path, name, parameter)
                data: Any = torch.empty_like(parameter, device=device)
                if given is None:
                    fresh.add(owner)
                else:
                    data.copy_(given)
                made[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
            if id(parameter) in made:
                owner.register_parameter(name, made[id(parameter)])
            elif parameter.device != device:
                parameter.data = parameter.data.to(device)
    return fresh


def _names(file: Path) -> dict[str, str]:
    """Name of a tensor -> its key in the file; `safetensors.torch.save_model` notes ties in the metadata."""
    with safe_open(file, framework="pt") as opened:
        keys = {key: key for key in opened.keys()}  # noqa: SIM118 (not a mapping)
        ties = {name: key for name, key in (opened.metadata() or {}).items() if key in keys}
    return ties | keys
