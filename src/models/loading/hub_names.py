"""Weights as checkpoints on the hub and vLLM have them, where transformers' modules hold them otherwise.

A mixture's experts are a tensor each in files and stacked in the model, gates fused with what they open, and some names
differ. Transformers knows the transforms of its models; here they are applied to a few tensors at a time, so that no
more than a layer exists twice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

_LAYER = re.compile(r"^.*?\.\d+\.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor of a model is made of tensors of a checkpoint.

    Attributes:
        transform: merges or renames.
        sources: (name in the checkpoint, the transform's pattern that it fits), in order.
        target: name of the first tensor that the transform makes.
    """

    transform: WeightTransform
    sources: tuple[tuple[str, str], ...]
    target: str

    def make(self, name: str, read: Callable[[str], Tensor], model: PreTrainedModel) -> Tensor:
        """The model's tensor of that name; `read` gives those of the checkpoint."""
        transform: Any = copy.deepcopy(self.transform)
        for source, pattern in self.sources:
            transform.add_tensor(self.target, source, pattern, read(source))
        made = transform.convert(self.target, model=model, config=model.config)[name]
        tensor: Tensor = made[0] if isinstance(made, list) else made
        return tensor


def recipes(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Recipe]:
    """How each of the model's tensors is made that a checkpoint does not have under its name.

    Args:
        model: on any device.
        names: of the checkpoint's tensors.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    own: dict[str, Any] = {name.replace(".base_layer.", "."): one for name, one in model.state_dict().items()}
    sources: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if target != name and (pattern is not None or target in own) and not (target not in own and name in own):
            sources.setdefault(target, []).append((name, pattern or name))
    found: dict[str, Recipe] = {}
    for target, parts in sources.items():
        transform = by_pattern.get(parts[0][1]) or WeightRenaming(parts[0][0], target)
        for made in _targets(target, transform.target_patterns):
            found[made] = Recipe(transform, tuple(parts), target)
    return found


def _targets(first: str, patterns: Sequence[str]) -> list[str]:
    """Names of all that a transform makes, of which the first has the first pattern in it."""
    return [first, *(first.replace(patterns[0], other) for other in patterns[1:])]


def in_hub_names(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's state dict as checkpoints on the hub have them, a layer at a time.

    Args:
        model: whose tensors they are, on any device.
        named_tensors: in the order of its state dict.
    """
    if not (getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False)):
        yield from named_tensors
        return
    for _, part in groupby(named_tensors, key=_layer):
        yield from revert_weight_conversion(model, dict(part)).items()


def _layer(named: tuple[str, Tensor]) -> str:
    """The part of a name up to its first number: of tensors that may be merged, those of a layer."""
    found = _LAYER.match(named[0])
    return found[0] if found else ""
