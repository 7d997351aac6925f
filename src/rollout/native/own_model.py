"""A rollout engine's own copy of the policy: built without weights, filled by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.models.loading.weight_source import fill_empty, on_meta
from src.rollout.engine import EngineSource


def empty_model(source: EngineSource, device: str | torch.device | None) -> PreTrainedModel:
    """The architecture on a device, its weights still to come; buffers (rotary frequencies) are computed."""
    architecture = AutoConfig.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
    with on_meta():
        model = AutoModelForCausalLM.from_config(
            architecture, dtype=source.dtype, trust_remote_code=source.trust_remote_code
        )
    where = device or torch.accelerator.current_accelerator() or "cpu"
    with torch.inference_mode(False):  # validation, where the first use may be, makes tensors that take no updates
        fill_empty(model, torch.device(where))
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def copy_weights(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write weights in place, one tensor at a time, cast to the model's type and device.

    Args:
        model: takes them.
        named_tensors: all of its state dict; a tied head under either of its names or both.

    Raises:
        ValueError: a name that the model lacks, a wrong shape, two values for tied weights, or weights that were not
            given.
    """
    state = model.state_dict()
    written: dict[int, str] = {}
    with torch.no_grad():
        for name, tensor in named_tensors:
            target = state.get(name)
            if target is None:
                raise ValueError(
                    f"update_weights: unexpected name '{name}'; {type(model).__name__} has no such weight."
                )
            if target.shape != tensor.shape:
                raise ValueError(
                    f"update_weights: '{name}': expected shape {tuple(target.shape)}, found {tuple(tensor.shape)}."
                )
            tied = written.get(target.data_ptr())
            if tied is None:
                target.copy_(tensor)
                written[target.data_ptr()] = name
            elif not torch.equal(target, tensor.to(target)):
                raise ValueError(f"update_weights: '{name}' and '{tied}' are tied in the engine, but differ here.")
    missing = [name for name, target in state.items() if target.data_ptr() not in written]
    if missing:
        raise ValueError(
            f"update_weights: expected all {len(state)} weights, {len(missing)} were missing: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}."
        )
