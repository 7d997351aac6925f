"""Gradient checkpointing: what backward computes again in place of keeping it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch._higher_order_ops.wrap import inductor_compiled_code
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

Recomputed = Literal["full", "selective"] | bool

_aten = torch.ops.aten
_KEPT: list[Any] = [
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten._grouped_mm.default),
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    inductor_compiled_code,  # FlexAttention
]
"""Operations that take most of a forward's time: matrix products and attention."""


def recompute(model: PreTrainedModel, what: Recomputed) -> None:
    """Choose what the backward of each decoder layer computes again.

    Args:
        model: in training mode; layers forget their cache then.
        what: False: nothing. `full` (or True): all of a layer but its input. `selective`: what costs little, which are
            norms, activations, rotary embeddings and sums; products of matrices and attention are kept.
    """
    if not what:
        model.gradient_checkpointing_disable()
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _KEPT)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
