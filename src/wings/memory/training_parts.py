"""Predicted memory of policy and update: numbers in, parts out. Pure; `wings.memory.preflight` finds the numbers.

What is modelled: weights, gradients and Adam's moments where they lie; what FSDP2 gathers; what a row keeps and works
with (`wings.memory.activations` has traced it); the head; the temporaries of optimizer step and weight handover.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from src.algorithm.packing import GroupLayout, PackedRow
from src.config.placement import Placement
from src.models.loading.architecture import ParameterCounts
from src.models.loading.lora import LoraSettings
from src.models.loading.policy_config import PolicyConfig
from src.wings.memory.plan import PHASES, MemoryPart, Phase

_FLOAT = 4  # bytes; FSDP2 reduces gradients in float32
_HEAP_HOLES = 0.3  # of what a phase allocates; measured with glibc on SmolLM2-135M, tests/benchmarks/memory.py
_GATHERED_LAYERS = 3  # FSDP2: one in use, one fetched ahead, and the buffer that it arrives in


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What decides how much a layer keeps, besides the architecture.

    Attributes:
        weights: dtype of the weights that the forward reads (of gathered weights, under sharding).
        autocast: dtype of Trainer precision `*-mixed`; None without.
        rows: see `Policy`.
        checkpointing: see `Policy`.
        lora: adapters.
        dropout: see `Policy`.
        trust_remote_code: run Python code that comes with the model.
        cuda: where the forward runs.
    """

    weights: torch.dtype
    autocast: torch.dtype | None = None
    rows: Literal["packed", "separate"] = "packed"
    checkpointing: bool | Literal["full", "selective"] = False
    lora: LoraSettings | None = None
    dropout: bool = False
    trust_remote_code: bool = False
    cuda: bool = False


def model_traits(
    policy: PolicyConfig, rows: Literal["packed", "separate"], stored: torch.dtype, place: Placement, precision: str
) -> ModelTraits:
    """Types and switches of the policy's forwards; sharded weights are gathered in the type that they compute in."""
    chosen = policy.gradient_checkpointing  # what a compiler keeps in place of `selective` is at most all
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return ModelTraits(
        weights=mixed if mixed is not None and place.sharded else stored,
        autocast=mixed,
        rows=rows,
        checkpointing=False if chosen == "selective" and policy.compile_layers else chosen,
        lora=policy.lora,
        dropout=policy.dropout,
        trust_remote_code=policy.trust_remote_code,
        cuda=place.cuda,
    )


@dataclass(frozen=True, slots=True)
class RowShape:
    """A row of equal groups; a separate row is a batch of sequences, which are groups of one completion.

    Attributes:
        groups: prompt groups in the row.
        prompt: P, tokens of each prompt.
        completions: G, completions of each prompt.
        completion: T, sampled tokens of each completion.
    """

    groups: int
    prompt: int
    completions: int
    completion: int

    @property
    def tokens(self) -> int:
        """L, input positions.

        >>> RowShape(groups=2, prompt=10, completions=3, completion=5).tokens
        44
        """
        return self.groups * (self.prompt + self.completions * (self.completion - 1))

    @property
    def scored(self) -> int:
        """N, tokens that get a log-probability."""
        return self.groups * self.completions * self.completion

    def row(self) -> PackedRow:
        """Such a row, of zeros."""
        size = self.tokens // self.groups
        lengths = (self.completion,) * self.completions
        layouts = tuple(GroupLayout.of(size * i, self.prompt, lengths) for i in range(self.groups))
        inputs, scored = torch.zeros(self.tokens, dtype=torch.long), torch.zeros(self.scored, dtype=torch.long)
        return PackedRow(inputs, inputs, scored, scored, scored, layouts)


def longest_rows(budget: int, groups: int, prompt: int, completions: int, completion: int) -> tuple[RowShape, ...]:
    """The packed rows that can take most memory: one of most tokens, and one of most prompts.

    A group that is longer than the budget has a row of its own. Many long prompts with short completions take fewer
    tokens but more keys, since each completion meets its prompt's.

    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in longest_rows(2048, 2, 1024, 4, 192)]
    [(1, 1024, 192, 1788), (2, 1020, 2, 2048)]
    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in longest_rows(16384, 2, 100, 4, 51)]
    [(2, 100, 51, 600)]

    Args:
        budget: `updates.max_row_tokens`.
        groups: most groups that there are to pack.
        prompt: tokens of the longest prompt.
        completions: of each prompt.
        completion: tokens of the longest completion.
    """
    whole = RowShape(1, prompt, completions, completion)
    if whole.tokens * groups <= budget:
        return (replace(whole, groups=groups),)
    many = min(groups, max(-(-budget // whole.tokens), budget // (prompt + completions)))
    size = budget // many
    short = max(2, 1 + -(-(size - prompt) // completions))
    crowded = RowShape(many, size - completions * (short - 1), completions, short)
    if crowded.prompt < 1:
        return (whole,)
    return (whole, crowded)


def largest_batches(budget: int, sequences: int, prompt: int, completion: int) -> tuple[RowShape, ...]:
    """The separate rows that can take most memory: one of the longest sequences, and one that fills the budget.

    A sequence that is longer than the budget has a row of its own.

    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in largest_batches(2048, 8, 1024, 192)]
    [(1, 1024, 192, 1215), (2, 833, 192, 2048)]
    >>> [(row.groups, row.prompt, row.completion, row.tokens) for row in largest_batches(2048, 8, 100, 51)]
    [(8, 100, 51, 1200)]

    Args:
        budget: `updates.max_row_tokens`, padding counted.
        sequences: most sequences that there are, each a prompt with one completion.
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
    """
    longest = prompt + completion - 1
    count = min(sequences, max(1, budget // longest))
    whole, size = RowShape(count, prompt, 1, completion), budget // (count + 1)
    if count == sequences or size * (count + 1) <= whole.tokens:
        return (whole,)
    scored = min(completion, size)
    return (whole, RowShape(count + 1, size - scored + 1, 1, scored))


@dataclass(frozen=True, slots=True)
class RowMemory:
    """Bytes of a row besides weights, gradients and what the head takes.

    Attributes:
        kept_layer: kept for backward by each decoder layer, on average.
        kept_rest: kept by what surrounds the layers: embeddings, rotary angles, gathers of the attention, last norm.
        working: largest use above what is kept, in the backward of a layer (recomputation included).
        forward: largest use of a forward without gradients, whatever the number of layers.
    """

    kept_layer: int
    kept_rest: int
    working: int
    forward: int

    def kept(self, layers: int) -> int:
        """Kept for backward by so many layers and what surrounds them."""
        return layers * self.kept_layer + self.kept_rest


@dataclass(frozen=True, slots=True)
class RowDemand:
    """What the longest row takes.

    Attributes:
        memory: in the layers.
        head_forward: of the head without gradients, with its inputs, in bytes.
        head_backward: of its backward, its weight's gradient included.
    """

    memory: RowMemory
    head_forward: int
    head_backward: int


@dataclass(frozen=True, slots=True)
class TrainingDemand:
    """The policy and its update.

    Attributes:
        counts: weights.
        weight_bytes: of a frozen weight.
        trained_bytes: of a weight that gets gradients; adapters are float32.
        compute_bytes: of a gathered weight.
        row: of the update and of scoring.
        warm_start: of the supervised stage before it, if there is one.
        reference: whether a frozen copy of the trained weights is kept (KL penalty).
        copies_weights: whether the engine is given its weights tensor by tensor.
        recomputes: whether backward computes all of a layer again, so that no less can be kept.
    """

    counts: ParameterCounts
    weight_bytes: int
    trained_bytes: int
    compute_bytes: int
    row: RowDemand
    warm_start: RowDemand | None = None
    reference: bool = False
    copies_weights: bool = False
    recomputes: bool = False


def policy_parts(demand: TrainingDemand, place: Placement) -> tuple[list[MemoryPart], list[MemoryPart]]:
    """Parts of policy and update: (on the device, offloaded to the host), both of one rank."""
    states = _states(demand, place)
    parts = [] if place.on_host else states
    parts += _gathered(demand, place) if place.sharded else [_embedding_gradient(demand)]
    parts += _activations(demand)
    parts += _temporaries(demand, place)
    return [part for part in parts if part.most], [part for part in states if part.most and place.on_host]


_UPDATE: tuple[Phase, ...] = ("warm start", "head", "layers", "embeddings", "step")
"""Phases in which there are gradients."""


def _states(demand: TrainingDemand, place: Placement) -> list[MemoryPart]:
    """What lives through the whole run."""
    counts = demand.counts
    has_adapters = counts.layer_trained < counts.layer  # other models leave what is not of their layers frozen
    keys = tuple(key for key in place.keys if not (has_adapters and key == "policy.lora"))
    trained = counts.trained * demand.trained_bytes
    weights = (counts.total - counts.trained) * demand.weight_bytes + trained
    of = f" (this rank's 1/{place.ranks})" if place.sharded and place.ranks > 1 else ""
    adapters = "" if counts.trained == counts.total else f", {in_words(counts.trained)} of them trained"
    parts = [
        MemoryPart.always("weights", f"{in_words(counts.total)}{adapters}{of}", weights * place.share, keys),
        MemoryPart("gradients", f"from backward to step{of}", dict.fromkeys(_UPDATE, int(trained * place.share)), keys),
        MemoryPart.always("optimizer", f"Adam's two moments{of}", 2 * trained * place.share, keys),
    ]
    if demand.reference:
        dropped = ("algorithm.loss.kl_coef=0", *keys)
        parts.append(MemoryPart.always("reference", f"frozen start of the policy{of}", trained * place.share, dropped))
    if place.buckets:
        views = ("trainer.strategy.gradient_as_bucket_view=true",)
        parts.append(MemoryPart.always("gradient buckets", "DDP's copy of the gradients", trained, views))
    return parts


def _gathered(demand: TrainingDemand, place: Placement) -> list[MemoryPart]:
    """What FSDP2 gathers: the root for a whole forward and backward, decoder layers a few at a time."""
    counts, width = demand.counts, demand.compute_bytes
    root, layer = counts.root * width, counts.layer * width
    at_once = layer * min(_GATHERED_LAYERS, counts.layers + 1)
    if not place.reshard:
        at_once = layer * (counts.layers + 1) - counts.missing * width
    root_gradients = counts.root_trained * width
    reducing = counts.layer_trained * (width + 2 * _FLOAT)  # whole, being reduced, and about to be
    running: tuple[Phase, ...] = ("warm start", "scoring", "head", "layers")
    whole: dict[Phase, int] = {
        "head": counts.head * width if counts.head_trained else 0,
        "layers": root_gradients + reducing,
        "embeddings": root_gradients + counts.root_trained * _FLOAT,
        "warm start": root_gradients + reducing,
    }
    reshard = () if place.reshard else ("trainer.strategy.reshard_after_forward=true",)
    layers = dict.fromkeys(running, at_once)
    return [
        MemoryPart("gathered root", "embeddings, last norm and head", dict.fromkeys((*running, "embeddings"), root)),
        MemoryPart("gathered layers", "decoder layers in use and fetched ahead", layers, reshard),
        MemoryPart("whole gradients", "of the root and of a layer, until they are reduced", whole),
    ]


def _embedding_gradient(demand: TrainingDemand) -> MemoryPart:
    """Made whole before it is added to what is there; a tied head's waits for it through the whole backward."""
    counts = demand.counts
    matrix = counts.head * demand.trained_bytes
    waiting = matrix if counts.tied and counts.head_trained else 0
    own = matrix if counts.embedding_trained else 0
    sizes: dict[Phase, int] = {"layers": waiting, "embeddings": waiting + own, "warm start": waiting}
    return MemoryPart("embedding gradient", "before it is added to the others", sizes)


def _activations(demand: TrainingDemand) -> list[MemoryPart]:
    row, stage, layers = demand.row, demand.warm_start, demand.counts.layers
    kept = row.memory.kept(layers)
    chunk: dict[Phase, int] = {"head": row.head_backward}
    forward: dict[Phase, int] = {"scoring": max(row.memory.forward, row.head_forward)}
    shorter = ("updates.max_row_tokens",)
    again = () if demand.recomputes else ("policy.gradient_checkpointing=full",)
    parts = [
        MemoryPart(
            "activations",
            "kept for backward by all layers",
            {"head": kept, "layers": kept},
            (*shorter, *again),
        ),
        MemoryPart("layer at work", "what one layer's backward adds", {"layers": row.memory.working}, shorter),
        MemoryPart("logits chunk", "logits at work, and the head's gradient", chunk, ("policy.head_chunk",)),
        MemoryPart("forward", "one layer, or the head, without gradients", forward, (*shorter, "policy.head_chunk")),
    ]
    if stage is not None:
        size = stage.memory.kept(layers) + max(stage.memory.working, stage.head_backward)
        smaller = (*shorter, "warm_start.batch_size", "warm_start.max_tokens", *again)
        parts.append(MemoryPart("warm-start batch", "its activations and its head", {"warm start": size}, smaller))
    return parts


def _temporaries(demand: TrainingDemand, place: Placement) -> list[MemoryPart]:
    """Of the optimizer step and of the weight handover."""
    counts, size = demand.counts, demand.trained_bytes
    if place.on_host:
        step = 0.0
    elif place.cuda or place.sharded:
        step = 0.0  # one fused kernel
    else:
        step = 2 * counts.largest_trained * size * place.share
    parts = [MemoryPart("step at work", "temporaries of Adam", {"step": int(step)}, place.keys)]
    if demand.copies_weights:
        given = min(demand.weight_bytes, demand.compute_bytes) if place.sharded else demand.weight_bytes
        whole = counts.largest * (given + demand.compute_bytes)  # shards are converted before they are gathered
        parts.append(MemoryPart("gathered tensor", "the largest, gathered and converted", {"handover": whole}))
    return parts


def heap_holes(parts: Iterable[MemoryPart]) -> MemoryPart:
    """What the C library's heap does not give back between tensors of different sizes, on the CPU.

    Traced bytes are exact where every tensor has pages of its own (MALLOC_MMAP_THRESHOLD_=131072, which takes half as
    long again); otherwise the resident set is larger by a share of what comes and goes.
    """
    passing = [part for part in parts if set(part.bytes) not in (set(PHASES), set(_UPDATE))]
    sizes = {phase: int(_HEAP_HOLES * sum(part.bytes.get(phase, 0) for part in passing)) for phase in PHASES}
    return MemoryPart("heap", f"holes between freed tensors, {_HEAP_HOLES:.0%} of what comes and goes", sizes)


def in_words(count: int) -> str:
    """A number of weights.

    >>> in_words(8_190_735_360), in_words(134_515_008)
    ('8.19 B weights', '134.5 M weights')
    """
    return f"{count / 1e9:.2f} B weights" if count >= 1e9 else f"{count / 1e6:.1f} M weights"
