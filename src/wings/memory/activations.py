"""What a forward and a backward of a row keep in memory, found by running them on tensors without data.

The real modules and attention functions of this project run under PyTorch's `FakeTensorMode`, which computes shapes and
dtypes only; every storage is counted from its birth to its death. One decoder layer of each kind is enough, and two of
the first kind: the rest is linear in their numbers. So the numbers follow the code and hold for any architecture that
`Policy` takes. What kernels allocate inside themselves is not seen, and attention is counted as its fused kernels keep
it. A model whose code asks for values, which such tensors do not have, is bounded instead (`row_bound`).
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel, masking_utils

from src.algorithm.packing import PackedRow
from src.models.attention.packed import PACKED_ATTENTION, flex_supports, packed_attention_forward
from src.models.attention.plan import AttentionPlan
from src.models.head.head import block_tokens, token_logprobs_and_entropies, token_loss
from src.models.loading.architecture import empty_model, silent
from src.models.policy import Policy
from src.models.structure import decoder_of, head_of, layers_of
from src.wings.memory.training_parts import ModelTraits, RowMemory, RowShape

_MOST_OPERATIONS = 40_000  # of a trace: some ten seconds
_SHORT = 64  # tokens; a multiple of what layers cut sequences into
_FLOAT = 4  # bytes
_RESIDUAL_STREAMS = ("hc_mult", "hc_count")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make within this context, while they live.

    Attributes:
        live: bytes now.
        peak: most bytes at once; may be set back by the user.
        operations: that were run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        out = _run(func, args, kwargs or {})
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


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation, also where tensors without data cannot run it.

    A number that is asked for is 0: no layer is dropped by chance, and no text is too long for LongRoPE's first
    frequencies. Products by experts, which such tensors know in bfloat16 only, are as large in float32.
    """
    if args and isinstance(args[0], FakeTensor):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float32:
            halves = tree_map_only(Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x, args)
            return func(*halves, **kwargs).float()
    return func(*args, **kwargs)


def row_memory(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
    """Trace a row through the model without its head, forward and backward; takes about a second."""

    def measure(policy: Policy, layers: Sequence[_Layer], row: PackedRow, memory: LiveBytes) -> list[int]:
        with torch.no_grad():
            policy.states(row)
        forward, before = memory.peak, memory.live
        with _watched(layers, memory) as watch:
            hidden = policy.states(row).hidden
        kept = memory.live - before
        working = watch.backward(hidden)
        return [watch.kept_layer, kept - sum(watch.kept), working, forward]

    return RowMemory(*_trace(measure, architecture, traits, shape))


def forward_memory(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
    """`RowMemory.forward` alone, in a third of the time."""

    def measure(policy: Policy, _: Sequence[_Layer], row: PackedRow, memory: LiveBytes) -> list[int]:
        with torch.no_grad():
            policy.states(row)
        return [memory.peak]

    return _trace(measure, architecture, traits, shape)[0]


def cache_memory(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> int:
    """Bytes that a layer keeps of a row in the model's own cache, on average: keys, latent vectors, states."""

    def measure(policy: Policy, layers: Sequence[_Layer], row: PackedRow, memory: LiveBytes) -> list[int]:
        ids = row.input_ids[None]
        with torch.no_grad(), _watched(layers, memory) as watch:
            decoder_of(policy.eval().model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        return [watch.kept_layer]

    return _trace(measure, architecture, traits, shape)[0]


def _trace(measure: _Measure, architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> list[int]:
    """What is measured on the shortened model, or on the whole one where the code of the other layers asks for them.

    Layers that go through a sequence token by token would be traced for minutes. The numbers of long sequences then
    follow from those of three short ones, whose second differences are constant (attention that keeps its scores) or 0.

    Raises:
        Exception: whatever the model's code raises on tensors without data.
    """
    for whole in (False, True):
        try:
            return _of_length(partial(_measured, measure, architecture, traits, whole), traits, shape)
        except Exception:
            if whole:
                raise
    raise AssertionError


def _measured(
    measure: _Measure, architecture: PretrainedConfig, traits: ModelTraits, whole: bool, shape: RowShape
) -> tuple[list[int], int]:
    """What is measured, and the operations that it took."""
    with _without_data(architecture, traits, whole=whole) as (policy, layers):
        row = shape.row()
        with LiveBytes() as memory:
            return measure(policy, layers, row, memory), memory.operations


def _of_length(run: Callable[[RowShape], tuple[list[int], int]], traits: ModelTraits, shape: RowShape) -> list[int]:
    length = shape.tokens / shape.groups
    if traits.rows == "packed" or length <= 3 * _SHORT:
        return run(shape)[0]
    scored = -(-shape.completion * _SHORT // int(length))
    short = [replace(shape, prompt=n * (_SHORT - scored) + 1, completion=n * scored) for n in (1, 2, 3)]
    first, few = run(short[0])
    second, more = run(short[1])
    steps = length / _SHORT - 1
    if few + steps * (more - few) < _MOST_OPERATIONS:
        return run(shape)[0]
    return [_extended(steps, *values) for values in zip(first, second, run(short[2])[0], strict=True)]


def _extended(steps: float, first: int, second: int, third: int) -> int:
    """The parabola through three values a step apart, `steps` behind the first; at least the line through the last two.

    >>> _extended(4, 1, 4, 9), _extended(4, 10, 20, 25)
    (25, 35)
    """
    bend = max(0, third - 2 * second + first)
    return round(third + (steps - 2) * (third - second) + bend * (steps - 1) * (steps - 2) / 2)


def row_bound(architecture: PretrainedConfig, traits: ModelTraits, shape: RowShape) -> RowMemory:
    """An upper bound for attention and experts that cannot be traced; 1.2 to 15 times what real tensors took.

    Every matrix keeps what it reads and what it gives twice, in float32; attention keeps its scores three times. Of
    experts, as many as read a token are counted; where a model hides how many that is, all. Layers that go through a
    sequence token by token may keep more, but can be traced.
    """
    model = empty_model(architecture, traits.weights, traits.lora, trust=traits.trust_remote_code)
    text: Any = architecture.get_text_config(decoder=True)
    experts, streams = (
        next((count for name in names if (count := getattr(text, name, None))), 1)
        for names in (_EXPERTS_PER_TOKEN, _RESIDUAL_STREAMS)
    )

    def sizes(parameters: Iterable[nn.Parameter]) -> int:
        return sum(sum(p.shape) * (experts if p.dim() > 2 else 1) for p in parameters if p.dim() > 1)

    layers, tokens = layers_of(decoder_of(model)), shape.tokens
    inside = {p for layer in layers for p in layer.parameters()}
    parts = (part for part in decoder_of(model).modules() if not isinstance(part, nn.Embedding))
    outside = sizes({p for part in parts for p in part.parameters(recurse=False)} - inside)
    weights = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    width = head_of(model).in_features * streams
    scores = getattr(text, "num_attention_heads", 1) * (shape.prompt + shape.completion)
    layer = tokens * (2 * max(sizes(one.parameters()) for one in layers) + 4 * width + 3 * scores) * _FLOAT
    if traits.autocast is not None:
        layer += weights * traits.autocast.itemsize  # converted weights are kept
    full = traits.checkpointing in (True, "full")  # a bound for the selective form is all of a layer
    kept, again = (tokens * width * _FLOAT, layer) if full else (layer, 0)
    rest = tokens * (2 * outside + 8 * width) * _FLOAT
    return RowMemory(kept, rest, again + layer + weights * traits.weights.itemsize, layer + rest)


class _Layer(NamedTuple):
    """A layer of the shortened model and how many of the whole one it stands for; 0: the next one is its twin."""

    module: nn.Module
    stands_for: int


class _Watch:
    """What layers keep, from start to end of their forwards, and what the backward of each adds.

    Attributes:
        kept: bytes, by layer; of a layer with a twin, the twin's, without what is made once for all layers.
    """

    def __init__(self, layers: Sequence[_Layer], memory: LiveBytes) -> None:
        self._layers, self._memory = layers, memory
        self._starts, self._kept = [0] * len(layers), [0] * len(layers)
        self._level = self._working = 0

    @property
    def kept(self) -> list[int]:
        twin = self._layers[0].stands_for == 0
        return [self._kept[1], *self._kept[1:]] if twin else self._kept

    @property
    def kept_layer(self) -> int:
        """Bytes that a layer of the whole model keeps on average, rounded up."""
        layers = sum(layer.stands_for for layer in self._layers)
        return -(-sum(n * layer.stands_for for n, layer in zip(self.kept, self._layers, strict=True)) // layers)

    def start(self, index: int) -> None:
        """Of a layer's forward."""
        self._starts[index] = self._memory.live

    def end(self, index: int, output: Any) -> None:
        """Of a layer's forward; the backward of a layer of another kind than the last is measured by itself."""
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        self._kept[index] += self._memory.live - self._starts[index]
        if not torch.is_grad_enabled():
            self._kept[index] -= hidden.untyped_storage().nbytes()  # what the next layer reads is kept by nobody
        elif hidden.requires_grad and self._layers[index].stands_for and index < len(self._layers) - 1:
            level = self._memory.live
            hidden.register_hook(lambda _: self._turn(level))

    def backward(self, hidden: Tensor) -> int:
        """Run it: most bytes above those that are kept by the layers up to the one at work."""
        self._level = self._memory.peak = self._memory.live
        hidden.backward(torch.zeros_like(hidden))
        self._turn(0)
        return self._working

    def _turn(self, level: int) -> None:
        self._working = max(self._working, self._memory.peak - self._level)
        self._memory.peak, self._level = self._memory.live, level


@contextmanager
def _watched(layers: Sequence[_Layer], memory: LiveBytes) -> Iterator[_Watch]:
    watch = _Watch(layers, memory)
    handles = []
    for index, (module, _) in enumerate(layers):
        handles.append(module.register_forward_pre_hook(lambda *_, i=index: watch.start(i)))
        handles.append(module.register_forward_hook(lambda *given, i=index: watch.end(i, given[-1])))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


_Measure = Callable[[Policy, Sequence[_Layer], PackedRow, LiveBytes], list[int]]


@contextmanager
def _without_data(
    architecture: PretrainedConfig, traits: ModelTraits, *, whole: bool
) -> Iterator[tuple[Policy, list[_Layer]]]:
    """A policy, shortened or whole; within this context its tensors, and all others that are made, have no data."""
    model = empty_model(architecture, traits.weights, traits.lora, trust=traits.trust_remote_code)
    layers = _shorten(model, whole=whole)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_without_values())
        _give_memory(model)
        policy = Policy(
            model,
            rows=traits.rows,
            gradient_checkpointing=traits.checkpointing,
            fused_norms=not traits.cuda,
            dropout=traits.dropout,
        ).train()
        if traits.autocast is not None:
            stack.enter_context(torch.autocast("cpu", traits.autocast, cache_enabled=False))
        if traits.cuda:
            AttentionInterface.register(PACKED_ATTENTION, partial(_as_on_cuda, half=traits.autocast))
            stack.callback(AttentionInterface.register, PACKED_ATTENTION, packed_attention_forward)
        yield policy, layers


@contextmanager
def _without_values() -> Iterator[None]:
    """Where values are not there to be looked at: nobody checks or complains, and positions are those of one text."""
    complaints, checks = logging.getLogger("torch._subclasses.fake_tensor"), Distribution._validate_args
    level, texts_of = complaints.level, masking_utils.find_packed_sequence_indices
    try:
        complaints.setLevel(logging.CRITICAL)
        Distribution.set_default_validate_args(False)
        masking_utils.find_packed_sequence_indices = lambda *_, **__: None
        with silent():
            yield
    finally:
        masking_utils.find_packed_sequence_indices = texts_of
        Distribution.set_default_validate_args(checks)
        complaints.setLevel(level)


def _as_on_cuda(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    half: torch.dtype | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Where FlexAttention takes the heads, windows and caps cost nothing: as tiles on the CPU without them."""
    found = {"is_cuda": True, "dtype": half or query.dtype}
    on_cuda: list[Any] = [SimpleNamespace(shape=x.shape, **found) for x in (query, value)]
    if isinstance(attention_mask, AttentionPlan) and flex_supports(*on_cuda):
        attention_mask, kwargs = replace(attention_mask, within=None), kwargs | {"softcap": None}
    return packed_attention_forward(module, query, key, value, attention_mask, **kwargs)


def head_memory(
    vocabulary: int,
    width: int,
    dtype: torch.dtype,
    chunk: int,
    trained: bool,
    cuda: bool = False,
    autocast: torch.dtype | None = None,
) -> tuple[int, int]:
    """Bytes that the head takes above its inputs: (scoring, update).

    The update counts the gradient of the head's weight [V, d], in float32 while it is summed.

    Args:
        vocabulary: V.
        width: d.
        dtype: of hidden states and weight.
        chunk: tokens whose logits exist at once.
        trained: whether the weight gets a gradient.
        cuda: where the head runs. There scoring takes two more chunks, which do not share memory and go through the
            softmax as one block. Half-precision operands are multiplied as they are, by a gradient of the logits that
            is half as large as a chunk; its product with the hidden states is made whole before it is summed.
        autocast: see `ModelTraits`.
    """
    autocast = autocast if autocast == torch.bfloat16 else None
    halves = cuda and (autocast is not None or dtype != torch.float32)
    traced = max(8, block_tokens(vocabulary))  # from there on memory grows evenly with the chunk
    types = (torch.float32, None) if cuda else (dtype, autocast)
    few, more = (_head_memory(vocabulary, width, *types, tokens, trained) for tokens in (traced, 2 * traced))
    scoring, update = (a + (chunk - traced) * (b - a) // traced for a, b in zip(few, more, strict=True))
    logits, matrix = chunk * vocabulary, vocabulary * width
    scoring += 2 * logits * 4 * cuda
    update += (2 * logits + 4 * matrix * trained) * halves
    converted = 2 * matrix if halves and dtype == torch.float32 else 0
    return scoring + converted, update + converted


def _head_memory(
    vocabulary: int, width: int, dtype: torch.dtype, autocast: torch.dtype | None, chunk: int, trained: bool
) -> tuple[int, int]:
    """`head_memory` of a small chunk on a CPU, traced."""
    tokens = 3 * chunk  # enough for a chunk to meet what the one before it leaves behind
    with torch.autocast("cpu", autocast, enabled=autocast is not None), FakeTensorMode(), LiveBytes() as memory:
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


def _shorten(model: PreTrainedModel, *, whole: bool) -> list[_Layer]:
    """Leave hardly any vocabulary, which is counted elsewhere, and of each kind the last layer, of the first one two.

    Layers are of a kind if their weights are of the same shapes and the config's lists say the same of them. The last
    ones, because layers that borrow keys borrow them from the last one of another kind.
    """
    parts: tuple[Any, ...] = (model.get_input_embeddings(), head_of(model))
    for part in parts:
        old = part.weight
        part.weight = nn.Parameter(old[:8].detach(), requires_grad=old.requires_grad)
        part.padding_idx = None
    decoder = decoder_of(model)
    layers = layers_of(decoder)
    if whole:
        return [_Layer(layer, 1) for layer in layers]
    stacks = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and set(layers) & set(part)]
    stack_of = {layer: index for index, stack in enumerate(stacks) for layer in stack}
    config = vars(cast(Any, decoder).config)
    lists = {name: value for name, value in config.items() if isinstance(value, list) and len(value) == len(layers)}
    kinds = [
        (stack_of[layer], repr([(name, p.shape) for name, p in layer.named_parameters()]), repr(listed))
        for layer, *listed in zip(layers, *lists.values(), strict=True)
    ]
    counts = Counter(kinds)
    last = {kind: index for index, kind in enumerate(kinds)}
    first = min(last.values())
    twins = [index for index in range(first) if kinds[index] == kinds[first]][-1:]
    kept = [*twins, *sorted(last.values())]
    for name, value in lists.items():
        config[name] = [value[index] for index in kept] + value[len(kept) :]
    for index, stack in enumerate(stacks):
        chosen = [layers[place] for place in kept if kinds[place][0] == index]
        del stack[len(chosen) :]
        for place, layer in enumerate(chosen):
            stack[place] = layer
    return [_Layer(layers[place], 0 if place in twins else counts[kinds[place]]) for place in kept]
