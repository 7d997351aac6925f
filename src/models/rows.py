"""The hidden states that predict a row's tokens, in the two ways in which a decoder can compute them.

`packed`: the whole row in one sequence, each prompt once, by the attention function of packed rows. It is right where
attention is all by which a layer looks at other tokens. `separate`: each completion behind a copy of its prompt, a
sequence of its own in a batch that is padded on the right, by the model's own attention and without a mask. Padding
follows what is scored, so it changes nothing in a causal model, recurrent layers included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.algorithm.packing import PackedRow, padded
from src.models.attention.packed import PACKED_ATTENTION, check_packs, planned
from src.models.attention.plan import AttentionPlan, block_length, in_blocks
from src.models.moe import route_in_float32
from src.models.structure import decoder_of, freeze_unused, head_of, own_attention, set_attention


def prepare(model: PreTrainedModel, rows: Literal["packed", "separate"]) -> None:
    """Give a model the attention of its rows, take its routers out of autocast and gradients from what reads no text.

    Raises:
        ConfigError: it has no linear head, or cannot run on packed rows.
    """
    head_of(model)
    if rows == "packed":
        check_packs(model.config)
        set_attention(model, PACKED_ATTENTION)
    else:
        model.set_attn_implementation(own_attention(model))
    freeze_unused(model)
    route_in_float32(decoder_of(model))


class RowStates(NamedTuple):
    """What a decoder makes of a row.

    Attributes:
        hidden: [N, d], the hidden states that predict its N tokens.
        router_logits: [T, E] of each layer with experts, over the decoder's T inputs; None: not asked for.
        real: bool [T], which of these are no padding; None: all.
    """

    hidden: Tensor
    router_logits: tuple[Tensor, ...] | None = None
    real: Tensor | None = None


def packed_states(decoder: nn.Module, row: PackedRow, **options: bool) -> RowStates:
    """The row in one sequence; the decoder attends through `PACKED_ATTENTION`.

    Args:
        decoder: of a model.
        row: on its device.
        **options: `output_router_logits=True` asks for these.
    """
    tokens, device = len(row.input_ids), row.input_ids.device
    if in_blocks(device):
        row = padded(row, block_length(tokens))
    positions = row.position_ids[None]
    with planned(AttentionPlan(row.layouts, device)):
        output = decoder(
            input_ids=row.input_ids[None],
            position_ids=positions,
            attention_mask=torch.ones_like(positions, dtype=torch.bool),  # else positions that restart mean other texts
            use_cache=False,
            **options,
        )
    hidden = cast(Tensor, output.last_hidden_state)[0].index_select(0, row.score_positions)
    real = None if tokens == positions.shape[1] else torch.arange(positions.shape[1], device=device) < tokens
    return RowStates(hidden, getattr(output, "router_logits", None), real)


def separate_states(decoder: nn.Module, row: PackedRow, **options: bool) -> RowStates:
    """The row's sequences in one padded batch, by the model's own attention; arguments as of `packed_states`."""
    sequences = list(_sequences(row))
    longest = max(map(len, sequences))
    width = torch.arange(longest, device=row.input_ids.device)
    batch = torch.stack([row.input_ids[torch.nn.functional.pad(p, (0, longest - len(p)))] for p in sequences])
    output = decoder(input_ids=batch, position_ids=width.expand(len(batch), -1), use_cache=False, **options)
    hidden = cast(Tensor, output.last_hidden_state)
    real = torch.stack([width < len(p) for p in sequences]).flatten()
    scored = row.sequences * longest + row.position_ids[row.score_positions]
    picked = hidden.flatten(0, 1).index_select(0, scored)
    return RowStates(picked, getattr(output, "router_logits", None), real)


def batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences in batches of at most `max_tokens`, padding counted, the longest sequences first.

    >>> batches([5, 9, 4, 8], max_tokens=18)
    [[1, 3], [0, 2]]

    Args:
        lengths: tokens of each sequence; one over the budget goes alone.
        max_tokens: of a batch.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not found or lengths[found[-1][0]] * (len(found[-1]) + 1) > max_tokens:
            found.append([])
        found[-1].append(index)
    return found


def _sequences(row: PackedRow) -> Iterator[Tensor]:
    """The places in the row of each sequence's inputs, int64."""
    everywhere = torch.arange(len(row.input_ids), device=row.input_ids.device)
    for layout in row.layouts:
        runs = [everywhere[start : start + size] for start, size in zip(layout.starts, layout.sizes, strict=True)]
        for path in layout.sequences:
            yield torch.cat([runs[run] for run in path])
