"""torch.compile for a policy: few graphs for rows of all lengths, and decoder layers that are compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from src.errors import ConfigError
from src.models.moe import routers_of
from src.models.structure import decoder_of, layers_of

MOST_GRAPHS = 64
"""Of a function, which a row of another length does not add to. PyTorch's limit of 8 would end a run, or a compiled
layer without a word: with and without gradients, in inference mode, for windows, caps and sinks are more."""

BACKEND = "inductor"
"""PyTorch's compiler; a test may be content with less."""


@contextmanager
def many_graphs() -> Iterator[None]:
    """Around a forward whose functions are compiled."""
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        yield


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer in place, when it first runs. Names and weights stay; equal layers share their code.

    Raises:
        ConfigError: see `check_dense`.
    """
    decoder = decoder_of(model)
    check_dense(model.config.model_type, mixture=bool(routers_of(decoder)))
    for layer in layers_of(decoder):
        layer.compile(dynamic=True, backend=BACKEND)


def check_dense(model_type: str, *, mixture: bool) -> None:
    """Refuse to compile a mixture of experts: its routers are read by hooks in layers, which compiled code leaves out.

    Raises:
        ConfigError: it is one.
    """
    if mixture:
        raise ConfigError(
            "policy.compile_layers=true: expected a dense model, found a mixture of experts (model type "
            f"'{model_type}'). Set it to false."
        )
