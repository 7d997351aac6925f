"""Gradient checkpointing: what backward computes again in place of keeping it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch._higher_order_ops.wrap import inductor_compiled_code
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from src.models.compiling import many_graphs

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


def recompute(model: PreTrainedModel, what: Recomputed, *, compiled: bool = False) -> None:
    """Choose what the backward of each decoder layer computes again.

    Args:
        model: in training mode; layers forget their cache then.
        what: False: nothing. `full` (or True): all of a layer but its input. `selective`: what costs little, which are
            norms, activations, rotary embeddings and sums; products of matrices and attention are kept.
        compiled: the layers are; their compiler chooses in place of `selective`.
    """
    if not what or (compiled and what == "selective"):
        model.gradient_checkpointing_disable()
        return
    settings = {"use_reentrant": False, "context_fn": partial(_contexts, selective=what == "selective")}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    model.disable_input_require_grads()  # only reentrant checkpoints need them, and no_grad would have another graph


def _contexts(*, selective: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around a layer's forward, and around its repetition in the backward."""
    if not selective:
        return nullcontext(), many_graphs()
    first, second = create_selective_checkpoint_contexts(_KEPT)
    return first, _both(many_graphs(), second)


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
