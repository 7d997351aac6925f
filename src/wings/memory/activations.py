"""What a forward and a backward of a packed row keep in memory, found by running them on tensors without data.

The real modules and attention functions of this project run under PyTorch's `FakeTensorMode`, which computes shapes and
dtypes only; every storage is counted from its birth to its death. Two decoder layers are enough: the rest is linear
in their number. So the numbers follow the code and hold for any architecture that `Policy` takes. What kernels
allocate inside themselves is not seen, and attention is counted as its fused kernels keep it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from src.models.head.head import block_tokens, token_logprobs_and_entropies, token_loss
from src.models.loading.architecture import empty_model
from src.models.policy import Policy
from src.models.structure import decoder_of, layers_of
from src.wings.memory.training_parts import ModelTraits, RowMemory, RowShape

_LAYERS = 2  # enough to see what one more adds


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make within this context, while they live.

    Attributes:
        live: bytes now.
        peak: most bytes at once; may be set back by the user.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def freed(_: object) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def row_memory(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
    """Trace a row through the model without its head, forward and backward; takes about a second."""
    after_layer: list[int] = []
    with _without_data(architecture, traits) as policy:
        row = shape.row()
        with LiveBytes() as memory:
            with torch.no_grad():
                policy.states(row)
            forward, before = memory.peak, memory.live
            for layer in layers_of(decoder_of(policy.model)):
                layer.register_forward_hook(lambda *_: after_layer.append(memory.live))
            hidden = policy.states(row).hidden
            first, second = after_layer
            kept, kept_layer = memory.live - before, second - first
            memory.peak = memory.live
            hidden.backward(torch.zeros_like(hidden))
            working = memory.peak - before - kept
    return RowMemory(kept_layer, kept - _LAYERS * kept_layer, working, forward)


def forward_memory(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
    """`RowMemory.forward` alone, in a third of the time."""
    with _without_data(architecture, traits) as policy:
        row = shape.row()
        with torch.no_grad(), LiveBytes() as memory:
            policy.states(row)
    return memory.peak


@contextmanager
def _without_data(architecture: PretrainedConfig, traits: ModelTraits) -> Iterator[Policy]:
    """A policy of two layers; within this context its tensors, and all others that are made, have no data."""
    model = empty_model(_shortened(architecture), traits.weights, traits.lora, trust=traits.trust_remote_code)
    autocast = nullcontext() if traits.autocast is None else torch.autocast("cpu", traits.autocast, cache_enabled=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_memory(model)
        policy = Policy(
            model,
            rows=traits.rows,
            gradient_checkpointing=traits.checkpointing,
            fused_norms=not traits.cuda,
            dropout=traits.dropout,
        ).train()
        with autocast:
            yield policy


def head_memory(
    vocabulary: int, width: int, dtype: torch.dtype, chunk: int, trained: bool, cuda: bool = False
) -> tuple[int, int]:
    """Bytes that the head takes above its inputs: (scoring, update).

    The update counts the gradient of the head's weight [V, d], in float32 while it is summed.

    Args:
        vocabulary: V.
        width: d.
        dtype: of hidden states and weight.
        chunk: tokens whose logits exist at once.
        trained: whether the weight gets a gradient.
        cuda: two more chunks, since there they do not share memory and go through the softmax as one block.
    """
    traced = max(8, block_tokens(vocabulary))  # from there on memory grows evenly with the chunk
    few, more = (_head_memory(vocabulary, width, dtype, tokens, trained) for tokens in (traced, 2 * traced))
    extra = 2 * chunk * vocabulary * 4 if cuda else 0
    scoring, update = (a + (chunk - traced) * (b - a) // traced + extra for a, b in zip(few, more, strict=True))
    return scoring, update


def _head_memory(vocabulary: int, width: int, dtype: torch.dtype, chunk: int, trained: bool) -> tuple[int, int]:
    """`head_memory` of a small chunk, traced."""
    tokens = 3 * chunk  # enough for a chunk to meet what the one before it leaves behind
    with FakeTensorMode(), LiveBytes() as memory:
        hidden = torch.zeros(tokens, width, dtype=dtype, requires_grad=True)
        weight = torch.zeros(vocabulary, width, dtype=dtype, requires_grad=trained)
        targets = torch.zeros(tokens, dtype=torch.long)
        given = memory.peak = memory.live
        with torch.no_grad():
            token_logprobs_and_entropies(hidden, weight, targets, temperature=0.5, chunk=chunk)
        scoring = memory.peak - given
        memory.peak = memory.live
        token_loss(hidden, weight, targets, lambda p, h, _: (p + h).sum(), temperature=0.5, chunk=chunk)[0].backward()
        return scoring, memory.peak - given


def _give_memory(model: nn.Module) -> None:
    """Replace parameters on the meta device by fake ones, with gradients as in every row but the first."""
    for owner in model.modules():
        for name, old in owner.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
            if new.requires_grad:
                new.grad = torch.zeros_like(new)
            owner.register_parameter(name, new)


def _shortened(architecture: PretrainedConfig) -> PretrainedConfig:
    """The architecture with two layers and hardly any vocabulary, whose memory is counted elsewhere."""
    short = copy.deepcopy(architecture)
    text = short.get_text_config()
    text.num_hidden_layers = _LAYERS
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:_LAYERS]
    text.vocab_size = 8
    text.pad_token_id = None
    return short
