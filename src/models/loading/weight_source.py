"""Models without weights: built on the meta device and filled later, so that no rank holds more than it must."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from src.errors import ConfigError, FileError
from src.models.loading.hub_names import Recipe, recipes
from src.models.loading.lora import has_adapter
from src.models.structure import decoder_of, head_of, layers_of

log = logging.getLogger(__name__)

_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")
_MORE_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""Keys of a config that count layers which predict tokens further ahead, and lie behind the last one in files."""


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the weights of a model on the meta device are.

    Attributes:
        files: name in the plain architecture's state dict -> safetensors file and name in it; empty: weights are drawn
            at random.
        where: for messages.
        recipes: of the model's tensors that are made of others in the files.
    """

    files: dict[str, tuple[Path, str]]
    where: str
    recipes: dict[str, Recipe] = field(default_factory=dict)

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
        files = [path] if path.is_file() else sorted(path.glob("model*.safetensors"))
        if not files:
            raise FileError(
                f"policy: '{source}' holds no *.safetensors, which a sharded policy is loaded from tensor by tensor. "
                "Save the model anew with transformers' save_pretrained."
            )
        return cls({name: (file, key) for file in files for name, key in _names(file).items()}, str(source))

    def made_for(self, model: PreTrainedModel) -> WeightSource:
        """The same for a model that may hold its tensors otherwise than the files (`hub_names`).

        Raises:
            ConfigError: see `check_surplus` and `check_tie`.
        """
        made = replace(self, recipes=recipes(model, self.files))
        used = {source for recipe in made.recipes.values() for source, _ in recipe.sources}
        own = {name.replace(".base_layer.", ".") for name in model.state_dict()}
        ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
        surplus = [name for name in self.files if not (name in own | used or any(p.search(name) for p in ignored))]
        check_surplus(model, surplus, self.where)
        names = {module: f"{name}.weight" for name, module in model.named_modules()}
        ends: list[Any] = [head_of(model), model.get_input_embeddings()]
        if ends[0].weight is ends[1].weight and (head := made.read(names[ends[0]], model)) is not None:
            embedding = made.read(names[ends[1]], model)
            check_tie(embedding is None or torch.equal(head, embedding), self.where)
        return made

    def read(self, name: str, model: PreTrainedModel) -> Tensor | None:
        """One tensor of the model with its file's shape and type, or None where there is none of that name."""
        if name in self.recipes:
            return self.recipes[name].make(name, self._stored, model)
        return self._stored(name) if name in self.files else None

    def _stored(self, name: str) -> Tensor:
        path, key = self.files[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def start_of(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The model's state dict as it will be once filled, a tensor at a time; what no file holds is left out."""
        for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
            ties = [other for other, one in model.named_parameters(remove_duplicate=False) if one is parameter]
            for candidate in (name, name.replace(".base_layer.", "."), *ties):
                tensor = self.read(candidate, model)
                if tensor is not None:
                    yield name, tensor.to(parameter.dtype)
                    break


def check_surplus(model: PreTrainedModel, names: Sequence[str], where: str) -> None:
    """Refuse tensors of a checkpoint that its config.json has no use for where they are part of what it computes.

    That is so of a weight or bias of a module that the model has, and of layers after its last. Others (an encoder, a
    buffer of an older version) are told of.

    Raises:
        ConfigError: names some.
    """
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.base_model.named_modules()}
    text: Any = model.config.get_text_config(decoder=True)
    layers = len(layers_of(decoder_of(model))) + sum(getattr(text, key, None) or 0 for key in _MORE_LAYERS)

    def matters(name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        layer = _LAYER.search(name)
        return (leaf in ("weight", "bias") and owner in modules) or (layer is not None and int(layer[1]) >= layers)

    if wrong := [name for name in names if matters(name)]:
        raise ConfigError(
            f"policy: the weights of '{where}' have {len(wrong)} tensors that the model of its config.json does not: "
            f"{some(wrong)}. Without them it computes something else. Is config.json that of these weights?"
        )
    if names:
        log.warning("Of '%s' %d of the tensors are not the policy's and stay out: %s.", where, len(names), some(names))


def check_tie(equal: bool, where: str) -> None:
    """Refuse weights that have a head which differs from the embeddings, where config.json says that they are one.

    Raises:
        ConfigError: says which key to change.
    """
    if not equal:
        raise ConfigError(
            f"policy: the weights of '{where}' have an output head that differs from the embeddings, while its "
            "config.json says tie_word_embeddings=true: engines would read one thing, trainers the other. Set it to "
            "false there, or take the head's tensor out of the weights."
        )


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return f"{', '.join(sorted(names)[:4])}{', …' if len(names) > 4 else ''}"


@torch.no_grad()
def fill(
    module: nn.Module, device: torch.device, weights: WeightSource | None, prefix: str, model: PreTrainedModel
) -> None:
    """Give a part of a model its weights on `device`, converted to the type that the parameters have.

    Parameters that are not on the meta device, and buffers that no file holds, only move. Adapters that no file holds
    are initialised.

    Args:
        module: the part; what is sharded in it already stays as it is.
        device: to fill on.
        weights: None: nothing is on the meta device.
        prefix: name of the part in the model, "" for the whole.
        model: knows how its modules are initialised.

    Raises:
        ConfigError: a weight that no file holds, or one of another shape.
    """

    def value(owner: nn.Module, owner_name: str, name: str, parameter: nn.Parameter) -> Tensor | None:
        if weights is None or not weights.files:
            return None
        full = f"{owner_name}.{name}"
        found = weights.read(full, model)
        if found is None:
            found = weights.read(full.replace(".base_layer.", "."), model)
        if found is None and ".lora_" not in full:
            raise ConfigError(
                f"policy: {weights.where} has no tensor '{full}', which {type(model).__name__} needs. Is it a "
                "checkpoint of this architecture? If its names differ, save it anew with save_pretrained."
            )
        if found is not None and found.shape != parameter.shape:
            raise ConfigError(
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
    for path, tensor_owner in module.named_modules(prefix=prefix):
        for name, buffer in tensor_owner.named_buffers(recurse=False):
            stored = None if weights is None else weights.read(f"{path}.{name}".lstrip("."), model)
            setattr(tensor_owner, name, (buffer if stored is None else stored.to(buffer.dtype)).to(device))


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
