"""Key/value cache of prompt groups: a prompt's keys are stored once and shared by all its completions.

Storage is allocated once: prompts [slots, H_kv, width, D] and completions [rows, H_kv, columns, D], a layer. A model
reaches it through an attention function (`decoding`), builds no mask, concatenates nothing and repeats no key head:

- prefill: the prompts lie end to end in one row [1, sum P_i], and each attends to itself only. No padding. What one
  shares with the one before it, as later turns of the episodes of a task do, is copied and not computed again.
- decode: one row a completion, [R, 1]. A group's queries meet the prompt's keys in one product, each completion's query
  meets its own keys in another, and the two partial softmaxes are merged by their log-sum-exp.

A step writes the same column for all completions, and columns are used in turn: a completion that has fed s tokens owns
the last s of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.attention.plan import MaskMod

Pair = tuple[Tensor, Tensor]

MIN_SHARED = 128
"""Tokens that a prompt must share with the one before it, for its keys to be copied."""


def shared_prefixes(prompts: Sequence[Tensor]) -> list[int]:
    """How many tokens of each prompt int64 [P_i] are copied from the one before it; never all of them.

    Example:
        Prompts of 200, 200 and 150 equal tokens share 0, 199 and 149; below `MIN_SHARED` it is 0.
    """
    found = [0]
    for before, prompt in pairwise(prompts):
        size = min(len(before), len(prompt) - 1)
        differs = before[:size] != prompt[:size]
        size = int(differs.int().argmax()) if differs.any() else size
        found.append(size if size >= MIN_SHARED else 0)
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch has place for at once. Pure numbers: memory is planned with it too.

    Attributes:
        slots: prompts.
        rows: completions.
        width: tokens of a prompt.
    """

    slots: int
    rows: int
    width: int


def room_for(
    prompts: int, longest: int, n: int, max_new_tokens: int, *, max_sequences: int, max_batch_tokens: int
) -> Room:
    """The largest batch within the budgets; one prompt with its completions always fits.

    A prompt keeps its slot until its last completion is done, so what the budget of tokens leaves goes to further
    slots, for prompts that enter as soon as n completions of any others have left.

    Example:
        >>> room_for(100, 500, 8, 200, max_sequences=64, max_batch_tokens=20_000)
        Room(slots=14, rows=64, width=500)

        64 completions are 8 prompts; they take 64 x 200 tokens and leave 7,200, which is 14 prompts of 500.

    Args:
        prompts: all there are.
        longest: tokens of the longest.
        n: completions a prompt.
        max_new_tokens: longest completion.
        max_sequences: most completions.
        max_batch_tokens: most tokens, every prompt and completion counted at its longest.
    """
    groups = max(1, min(prompts, max_sequences // n, max_batch_tokens // (longest + n * max_new_tokens)))
    rows = groups * n
    spare = (max_batch_tokens - rows * max_new_tokens) // longest
    return Room(slots=max(groups, min(prompts, 2 * groups, spare)), rows=rows, width=longest)


@dataclass(frozen=True, slots=True)
class Grid:
    """Completions sorted by their prompts; changes only when completions enter or leave.

    Attributes:
        slots: prompts B.
        width: most completions of one prompt, W.
        prompt_width: tokens of the longest prompt.
        places: int64 [R], where each row stands in the grid [B x W]; None: row i at place i.
        members: int64 [B x W], the row at each place, any where there is none; None likewise.
        prompt_bias: float32 [B, 1, 1, prompt_width], -inf beyond a prompt's end; None: all are equally long.
    """

    slots: int
    width: int
    prompt_width: int
    places: Tensor | None
    members: Tensor | None
    prompt_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What the cache needs to know in a step.

    Attributes:
        grid: completions by prompt.
        rows: completions R.
        column: where the step's keys are written.
        width: columns that are read.
        own_bias: float32 [R, 1, 1, width], -inf where a column is not the row's; None: all are.
        positions: int64 [R], of the rows' queries in their sequences; read by layers with a window.
        columns: that there are.
    """

    grid: Grid
    rows: int
    column: int
    width: int
    own_bias: Tensor | None
    positions: Tensor
    columns: int


def grid_of(slot: Tensor, lengths: Sequence[int]) -> Grid:
    """Sort rows by prompt.

    Example:
        Rows 0 and 2 are of prompt 0, row 1 is of prompt 1: the grid is [[0, 2], [1, -]].

        >>> grid_of(torch.tensor([0, 1, 0]), [5, 5]).places
        tensor([0, 2, 1])

    Args:
        slot: int64 [R], the prompt of each row.
        lengths: tokens of each prompt; each has at least one row.
    """
    device, count = slot.device, len(lengths)
    order = torch.argsort(slot, stable=True)
    ordered = slot[order]
    starts = torch.searchsorted(ordered, torch.arange(count, device=device))
    rank = torch.arange(len(slot), device=device) - starts[ordered]
    width = int(rank.max()) + 1
    taken = ordered * width + rank
    places, members = torch.empty_like(slot), slot.new_zeros(count * width)
    places[order], members[taken] = taken, order
    longest = max(lengths)
    bias = None
    if min(lengths) < longest:
        ends = torch.tensor(lengths, device=device)[:, None]
        bias = _bias(torch.arange(longest, device=device) >= ends)
    if len(slot) == count * width and bool((taken == order).all()):
        return Grid(count, width, longest, None, None, bias)
    return Grid(count, width, longest, places, members, bias)


def own_bias(steps: Tensor, column: int, width: int, columns: int) -> Tensor:
    """float32 [R, 1, 1, width]: -inf where a column is older than the row.

    Example:
        Columns are used in turn. Of 4, the newest is column 0, then come 3, 2 and 1; of two rows that fed 3 tokens and
        1, the first owns columns 0, 3 and 2, the second column 0.

        >>> own_bias(torch.tensor([3, 1]), 0, 4, 4)[:, 0, 0]
        tensor([[0., -inf, 0., 0.],
                [0., -inf, -inf, -inf]])

    Args:
        steps: int64 [R], tokens fed so far, this one included.
        column: of this step, below `columns`.
        width: columns that are read.
        columns: that there are.
    """
    age = (column - torch.arange(width, device=steps.device)) % columns
    return _bias(age >= steps[:, None])


def _bias(masked: Tensor) -> Tensor:
    """float32 [B, 1, 1, width]: -inf where a bool [B, width] is set."""
    return torch.zeros(masked.shape, device=masked.device).masked_fill_(masked, -torch.inf)[:, None, None]


_HIDDEN = -1e30
"""Added to the scores of keys outside a window: of a part that is all outside, it leaves a mass of nothing."""


class CacheView:
    """What the layers of one kind see of a cache in one forward.

    Args:
        cache: that is seen.
        within: what a window lets through, of positions; None: everything.
    """

    def __init__(self, cache: PrefixCache, within: MaskMod | None) -> None:
        self.cache, self.within = cache, within
        self._biases: tuple[Tensor, Tensor] | None = None

    def within_window(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Bool, whether queries at positions [Q, 1] see keys at positions [K] by the window; None: there is none."""
        return None if self.within is None else self._sees(query, key)

    def biases(self, layout: StepLayout, repeat: int) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the scores of prompts' keys [B, 1, W x repeat, P] and of completions' own [R, 1, 1, width].

        Args:
            layout: of the step.
            repeat: query heads that share a key head.
        """
        grid = layout.grid
        if self.within is None:
            return grid.prompt_bias, layout.own_bias
        if self._biases is None:
            query = layout.positions[:, None]
            place = torch.arange(grid.prompt_width, device=query.device)
            prompt = torch.zeros(len(query), grid.prompt_width, device=query.device)
            prompt.masked_fill_(~self._sees(query, place), _HIDDEN)
            if grid.members is not None:
                prompt = prompt[grid.members]
            prompt = prompt.view(grid.slots, 1, grid.width, 1, -1).expand(-1, -1, -1, repeat, -1).flatten(2, 3)
            if grid.prompt_bias is not None:
                prompt = (prompt + grid.prompt_bias).clamp_(min=_HIDDEN)
            age = (layout.column - torch.arange(layout.width, device=query.device)) % layout.columns
            own = torch.zeros(len(query), layout.width, device=query.device)
            own.masked_fill_(~self._sees(query, query - age), _HIDDEN)
            own = own[:, None, None]
            if layout.own_bias is not None:
                own = (own + layout.own_bias).clamp_(min=_HIDDEN)
            self._biases = prompt, own
        return self._biases

    def _sees(self, query: Tensor, key: Tensor) -> Tensor:
        assert self.within is not None
        zero = query.new_zeros(())
        return self.within(zero, zero, query, key)


class Terms(NamedTuple):
    """How scores of attention are made and who is seen.

    Attributes:
        scale: factor of the products of queries and keys.
        softcap: scores become softcap tanh(score / softcap); None: they stay.
        sink: [H], the score of a key without a value that every query sees; None: none.
        view: None: everything is seen.
    """

    scale: float
    softcap: float | None = None
    sink: Tensor | None = None
    view: CacheView | None = None


class PrefixCache:
    """Keys and values of prompts, and of the completions that are being decoded from them.

    Args:
        room: how many prompts and completions it holds.
        max_new_tokens: longest completion; its last token is never fed back.
    """

    def __init__(self, room: Room, max_new_tokens: int) -> None:
        self.room = room
        self._max_new_tokens = max_new_tokens
        self.columns = max(max_new_tokens - 1, 1)
        self.lengths: list[int] = []
        """Tokens of the prompt in each used slot."""
        self.layout: StepLayout | None = None
        """Of the step that runs."""
        self._arriving: list[tuple[int, int]] = []  # tokens of a prompt, and how many of them the one before it has
        self._prompt: dict[int, Pair] = {}
        self._own: dict[int, Pair] = {}
        self._views: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._viewed: Grid | None = None

    @contextmanager
    def prefilling(self, lengths: Sequence[int], shared: Sequence[int]) -> Iterator[None]:
        """The forward inside brings prompts, end to end, which take the next slots.

        Args:
            lengths: of the prompts.
            shared: tokens at the start of each that are left out of the forward: those of the prompt before it.
        """
        self._arriving = list(zip(lengths, shared, strict=True))
        try:
            yield
            self.lengths += lengths
        finally:
            self._arriving = []

    def view(self, local_size: int | None, within: MaskMod) -> CacheView:
        """What layers with a window see; a window that no sequence outgrows is none.

        Args:
            local_size: tokens of the window; None: there is none.
            within: what it lets through, of positions.
        """
        longest = self.room.width + self._max_new_tokens
        return CacheView(self, None if local_size is None or longest <= local_size else within)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Store the new keys and values of `layer` and attend.

        Args:
            layer: index of the layer.
            query: [1, H, sum P_i, D] in prefill, [R, H, 1, D] in decoding.
            key: as query, with H_kv heads.
            value: as key.
            terms: of the scores.

        Returns:
            [1, sum P_i, H, D] or [R, 1, H, D].

        Raises:
            ValueError: rows or tokens are not those that were announced.
        """
        if self._arriving:
            return self._prefill(layer, query, key, value, terms)
        if query.shape[2] != 1:
            raise ValueError(f"PrefixCache: expected rows of 1 token, found {query.shape[2]}.")
        return self.decode(layer, query[:, :, 0], key[:, :, 0], value[:, :, 0], terms).unsqueeze(1)

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

        def pair(count: int, width: int) -> Pair:
            shapes = ((count, x.shape[1], width, x.shape[3]) for x in (key, value))
            made = [torch.empty(s, dtype=x.dtype, device=x.device) for s, x in zip(shapes, (key, value), strict=True)]
            return made[0], made[1]

        self._prompt[layer] = pair(self.room.slots, self.room.width)
        self._own[layer] = pair(self.room.rows, self.columns)

    def _prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        sizes = [length - shared for length, shared in self._arriving]
        if query.shape[0] != 1 or query.shape[2] != sum(sizes):
            raise ValueError(
                f"PrefixCache: expected one row of {sum(sizes)} prompt tokens, found {query.shape[0]} of "
                f"{query.shape[2]}."
            )
        if layer not in self._prompt:
            self._allocate(layer, key, value)
        stored = self._prompt[layer]
        outputs = []
        parts = zip(self._arriving, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
        for slot, ((length, shared), q, *new) in enumerate(parts, start=len(self.lengths)):
            for kept, fresh in zip(stored, new, strict=True):
                kept[slot, :, :shared] = kept[slot - 1, :, :shared]
                kept[slot, :, shared:length] = fresh[0]
                kept[slot, :, length:] = 0  # read where a longer prompt is beside it, and masked
            k, v = (kept[slot : slot + 1, :, :length] for kept in stored) if shared else new
            outputs.append(_self_attention(q, k, v, terms).transpose(1, 2))
        return torch.cat(outputs, dim=1)

    def decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention of one token a row, under `layout`.

        Args:
            layer: index of the layer.
            query: [R, H, D], contiguous.
            key: [R, H_kv, D].
            value: [R, H_kv, D_v].
            terms: of the scores.

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
            stored.select(2, layout.column).copy_(new)
        own_key, own_value = own_key[:, :, : layout.width], own_value[:, :, : layout.width]
        queries = query.view(rows, kv_heads, repeat, dim)
        prompt_bias, own_bias = (
            (grid.prompt_bias, layout.own_bias) if terms.view is None else terms.view.biases(layout, repeat)
        )
        own = partial_attention(queries, own_key, own_value, own_bias, terms)

        # each prompt's keys once: [B, H_kv, W x repeat, D]
        asked = queries if grid.members is None else queries[grid.members]
        asked = asked.view(grid.slots, grid.width, kv_heads, repeat, dim).transpose(1, 2).flatten(2, 3)
        shared = partial_attention(asked, prompt_key, prompt_value, prompt_bias, terms)
        out, mass = (x.unflatten(2, (grid.width, repeat)).transpose(1, 2) for x in shared)
        if grid.places is None:
            own = own[0].view(out.shape), own[1].reshape(mass.shape)
        else:
            out, mass = out.flatten(0, 1)[grid.places], mass.flatten(0, 1)[grid.places]
        merged = merge((out, mass), own)
        if terms.sink is not None:
            total = torch.logaddexp(mass, own[1]) - terms.sink.float().view(kv_heads, repeat)
            merged = merged * total.sigmoid().unsqueeze(-1).to(merged.dtype)
        return merged.reshape(rows, heads, -1)

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


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, terms: Terms
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, with the log of its mass, by which parts are merged.

    Args:
        query: [B, H, Q, D].
        key: [B, H, K, D].
        value: [B, H, K, D_v].
        bias: float32, broadcast to [B, H, Q, K], or None.
        terms: of the scores; its sink and its view are not read.

    Returns:
        Output [B, H, Q, D_v] and float32 log-sum-exp of the scores [B, H, Q].
    """
    if terms.softcap is None and _one_kernel(query, key, value):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=terms.scale
        )
    scores = ((query * terms.scale) @ key.transpose(-1, -2)).float()
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    if bias is not None:
        scores = scores + bias
    peak = scores.amax(dim=-1, keepdim=True)
    weights = (scores - peak).exp()
    mass = weights.sum(dim=-1, keepdim=True)
    return (weights / mass).to(value.dtype) @ value, (peak + mass.log()).squeeze(-1)


def _self_attention(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """Attention [1, H, S, D_v] of a prompt's last S queries [1, H, S, D] over all its P keys, which fewer may share."""
    asked, length, repeat = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    place = torch.arange(length, device=query.device)
    mask = None if terms.view is None else terms.view.within_window(place[length - asked :, None], place)
    if mask is not None or asked < length or terms.softcap is not None or terms.sink is not None:
        causal = place[length - asked :, None] >= place
        mask = causal if mask is None else mask & causal
    if terms.softcap is None and terms.sink is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=terms.scale, enable_gqa=repeat > 1
        )
    assert mask is not None
    bias = torch.zeros(mask.shape, device=query.device).masked_fill_(~mask, -torch.inf)
    key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
    out, mass = partial_attention(query, key, value, bias, terms)
    if terms.sink is not None:
        out = out * (mass - terms.sink.float()[:, None]).sigmoid().unsqueeze(-1).to(out.dtype)
    return out


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over both parts' keys: each part's output weighted by its share of the mass.

    Example:
        >>> one, two = (torch.tensor([[1.0]]), torch.tensor([0.0])), (torch.tensor([[4.0]]), torch.tensor([2.0]).log())
        >>> merge(one, two)  # masses 1 and 2: 1/3 of 1 and 2/3 of 4
        tensor([[3.]])

    Args:
        first: output [..., D] and log-sum-exp [...], as of `partial_attention`.
        second: likewise, over other keys.

    Returns:
        [..., D], in the outputs' type.
    """
    share = torch.sigmoid(second[1] - first[1]).unsqueeze(-1)
    if first[0].dtype == torch.float32:
        return torch.lerp(first[0], second[0], share)
    return torch.lerp(first[0].float(), second[0].float(), share).to(first[0].dtype)


def _one_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's fused CPU kernel, which also returns the log-sum-exp, takes these."""
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    return same and query.device.type == "cpu"
