"""Key/value cache of prompt groups: a prompt's keys are stored once and shared by all its completions.

Storage is allocated once: prompts [slots, H_kv, width, D] and completions [rows, H_kv, columns, D], a layer. It plugs
into any transformers model that looks its attention function up by name; the model builds no mask, concatenates nothing
and repeats no key head:

- prefill: the prompts lie end to end in one row [1, sum P_i], and each attends to itself only. No padding.
- decode: one row a completion, [R, 1]. A group's queries meet the prompt's keys in one product, each completion's query
  meets its own keys in another, and the two partial softmaxes are merged by their log-sum-exp.

A step writes the same column for all completions, and columns are used in turn: a completion that has fed s tokens owns
the last s of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from src.rollout.native.admission import Room
from src.rollout.native.partial_attention import merge, partial_attention
from src.rollout.native.step_layout import Grid, StepLayout

PREFIX_ATTENTION = "rollout_prefix"
Pair = tuple[Tensor, Tensor]


class PrefixCache:
    """Keys and values of prompts, and of the completions that are being decoded from them.

    Args:
        room: how many prompts and completions it holds.
        max_new_tokens: longest completion; its last token is never fed back.
        zeroed: fill new storage with zeros, for steps that read what was never written (it is masked, but must be
            finite).
    """

    def __init__(self, room: Room, max_new_tokens: int, *, zeroed: bool = False) -> None:
        self.room = room
        self.columns = max(max_new_tokens - 1, 1)
        self.lengths: list[int] = []
        """Tokens of the prompt in each used slot."""
        self.layout: StepLayout | None = None
        """Of the step that runs."""
        self._zeroed = zeroed
        self._arriving: list[int] = []
        self._prompt: dict[int, Pair] = {}
        self._own: dict[int, Pair] = {}
        self._views: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._viewed: Grid | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return sum(x.nbytes for stored in (self._prompt, self._own) for pair in stored.values() for x in pair)

    @contextmanager
    def prefilling(self, lengths: Sequence[int]) -> Iterator[None]:
        """The forward inside brings prompts of these lengths, end to end; they take the next slots."""
        self._arriving = list(lengths)
        try:
            yield
            self.lengths += self._arriving
        finally:
            self._arriving = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the new keys and values of `layer` and attend.

        Args:
            layer: index of the layer.
            query: [1, H, sum P_i, D] in prefill, [R, H, 1, D] in decoding.
            key: as query, with H_kv heads.
            value: as key.
            scale: factor of the scores.

        Returns:
            [1, sum P_i, H, D] or [R, 1, H, D].

        Raises:
            ValueError: rows or tokens are not those that were announced.
        """
        if self._arriving:
            return self._prefill(layer, query, key, value, scale)
        if query.shape[2] != 1:
            raise ValueError(f"PrefixCache: expected rows of 1 token, found {query.shape[2]}.")
        return self.decode(layer, query[:, :, 0], key[:, :, 0], value[:, :, 0], scale).unsqueeze(1)

    def move_rows(self, to: Tensor, source: Tensor, used: int) -> None:
        """Copy the first `used` columns of rows `source` [M] to rows `to` [M]."""
        if len(to):
            for x in _tensors(self._own):
                x[to, :, :used] = x[source, :, :used]

    def move_slots(self, to: Tensor, source: Tensor, kept: int) -> None:
        """Copy prompts from slots `source` [M] to slots `to` [M], and forget those from slot `kept` on."""
        if len(to):
            width = max(self.lengths)
            for x in _tensors(self._prompt):
                x[to, :, :width] = x[source, :, :width]
        for target, origin in zip(to.tolist(), source.tolist(), strict=True):
            self.lengths[target] = self.lengths[origin]
        del self.lengths[kept:]

    def clear_rows(self, start: int, stop: int, used: int) -> None:
        """Zero the columns in use of rows that start late: theirs begin after these, which are masked."""
        for x in _tensors(self._own):
            x[start:stop, :, :used] = 0

    def resize(self, room: Room, rows: int, used: int) -> None:
        """Other sizes; prompts, and `used` columns of the first `rows` completions, stay.

        One layer at a time: two whole caches might not fit.
        """
        slots, width = len(self.lengths), max(self.lengths, default=0)
        self.room = room
        for layer in list(self._prompt):
            prompts, own = self._prompt.pop(layer), self._own.pop(layer)
            self._allocate(layer, *prompts)
            for new, old in zip(self._prompt[layer], prompts, strict=True):
                new[:slots, :, :width] = old[:slots, :, :width]
            for new, old in zip(self._own[layer], own, strict=True):
                new[:rows, :, :used] = old[:rows, :, :used]

    def _allocate(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Storage for a layer with heads and types of key and value [..., H_kv, ..., D]."""
        make = torch.zeros if self._zeroed else torch.empty

        def pair(count: int, width: int) -> Pair:
            shapes = ((count, x.shape[1], width, x.shape[3]) for x in (key, value))
            made = [make(s, dtype=x.dtype, device=x.device) for s, x in zip(shapes, (key, value), strict=True)]
            return made[0], made[1]

        self._prompt[layer] = pair(self.room.slots, self.room.width)
        self._own[layer] = pair(self.room.rows, self.columns)

    def _prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if query.shape[0] != 1 or query.shape[2] != sum(self._arriving):
            raise ValueError(
                f"PrefixCache: expected one row of {sum(self._arriving)} prompt tokens, "
                f"found {query.shape[0]} of {query.shape[2]}."
            )
        if layer not in self._prompt:
            self._allocate(layer, key, value)
        stored_key, stored_value = self._prompt[layer]
        outputs = []
        parts = zip(*(x.split(self._arriving, dim=2) for x in (query, key, value)), strict=True)
        for slot, (q, k, v) in enumerate(parts, start=len(self.lengths)):
            for stored, new in ((stored_key, k), (stored_value, v)):
                stored[slot, :, : new.shape[2]] = new[0]
                stored[slot, :, new.shape[2] :] = 0  # read where a longer prompt is beside it, and masked
            gqa = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
            outputs.append(out.transpose(1, 2))
        return torch.cat(outputs, dim=1)

    def decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one token a row, under `layout`.

        Args:
            layer: index of the layer.
            query: [R, H, D], contiguous.
            key: [R, H_kv, D].
            value: [R, H_kv, D_v].
            scale: factor of the scores.

        Returns:
            [R, H, D_v].

        Raises:
            ValueError: other rows than the layout's.
        """
        layout = self.layout
        (rows, heads, dim), kv_heads = query.shape, key.shape[1]
        if layout is None or rows != layout.rows:
            raise ValueError(f"PrefixCache: expected {layout.rows if layout else 'no'} rows, found {rows}.")
        grid, repeat = layout.grid, heads // kv_heads
        own_key, own_value, prompt_key, prompt_value = self._present(layer, layout)
        for stored, new in ((own_key, key), (own_value, value)):
            if isinstance(layout.column, int):
                stored.select(2, layout.column).copy_(new)
            else:
                stored.index_copy_(2, layout.column, new.unsqueeze(2))
        own_key, own_value = own_key[:, :, : layout.width], own_value[:, :, : layout.width]
        queries = query.view(rows, kv_heads, repeat, dim)
        own = partial_attention(queries, own_key, own_value, layout.own_bias, scale)

        # each prompt's keys once: [B, H_kv, W x repeat, D]
        asked = queries if grid.members is None else queries[grid.members]
        asked = asked.view(grid.slots, grid.width, kv_heads, repeat, dim).transpose(1, 2).flatten(2, 3)
        shared = partial_attention(asked, prompt_key, prompt_value, grid.prompt_bias, scale)
        out, mass = (x.unflatten(2, (grid.width, repeat)).transpose(1, 2) for x in shared)
        if grid.places is None:
            own = own[0].view(out.shape), own[1].reshape(mass.shape)
        else:
            out, mass = out.flatten(0, 1)[grid.places], mass.flatten(0, 1)[grid.places]
        return merge((out, mass), own).reshape(rows, heads, -1)

    def _present(self, layer: int, layout: StepLayout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of the completions' and prompts' keys and values; a new grid comes with every change of what is in."""
        if self._viewed is not layout.grid:
            self._views.clear()
            self._viewed = layout.grid
        views = self._views.get(layer)
        if views is None:
            (own_key, own_value), (key, value), grid = self._own[layer], self._prompt[layer], layout.grid
            prompts = slice(grid.slots), slice(None), slice(grid.prompt_width)
            views = own_key[: layout.rows], own_value[: layout.rows], key[prompts], value[prompts]
            self._views[layer] = views
        return views


def _tensors(stored: dict[int, Pair]) -> Iterator[Tensor]:
    return (x for pair in stored.values() for x in pair)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_cache: PrefixCache | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Attention function in transformers' interface; the cache travels as a keyword of the model's forward.

    Args:
        module: the layer, which has a `layer_idx`.
        query: as in `PrefixCache.attend`, and so are key, value and the result.
        key: see query.
        value: see query.
        attention_mask: not read; the cache knows who sees what.
        scaling: of the scores; None: D^-1/2.
        prefix_cache: of this forward pass.
        **unsupported: refused where it would change the result.

    Returns:
        The attended values, and no weights.

    Raises:
        ValueError: without a cache, or where the layer wants what this function does not do (window, sinks, capping).
    """
    if prefix_cache is None:
        raise ValueError(f"attention '{PREFIX_ATTENTION}': expected the keyword prefix_cache, found none.")
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if unsupported.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__}: the native rollout engine expects full attention, "
                f"found {name}={unsupported[name]}. Use another engine for this model."
            )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return prefix_cache.attend(int(module.layer_idx), query, key, value, scale), None  # type: ignore[arg-type]


AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
