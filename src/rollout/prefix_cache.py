"""Key/value cache of prompt groups: a prompt's keys are stored once and shared by all its completions.

It plugs into any transformers model that looks its attention function up by name. The function keeps keys and values
itself, so the model builds no mask, concatenates nothing and repeats no key head:

- prefill: the prompts lie end to end in one row [1, sum P_i], and each attends to itself only. No padding.
- decode: one row a completion, [R, 1]. A group's queries meet the prompt's keys in one product, each completion's query
  meets its own keys in another, and the two partial softmaxes are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

PREFIX_ATTENTION = "rollout_prefix"
GROWTH = 64


class PrefixCache:
    """Keys and values of B prompts, and of the completions that are being decoded from them.

    Args:
        prompt_lengths: tokens of each prompt.
        n: completions a prompt.
        max_new_tokens: most tokens that a completion's cache will ever hold.
    """

    def __init__(self, prompt_lengths: Sequence[int], n: int, max_new_tokens: int) -> None:
        self.prompt_lengths = list(prompt_lengths)
        self.max_new_tokens = max_new_tokens
        self.length = 0
        """Tokens decoded so far; the token of the running step is written at this index."""
        self._prompt: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = len(self.prompt_lengths) * n
        self._width = n
        self._slots: Tensor | None = None
        self._padding: Tensor | None = None

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
        """
        if layer not in self._prompt:
            return self._prefill(layer, query, key, value, scale)
        return self._decode(layer, query, key, value, scale)

    def keep_rows(self, rows: Tensor, groups: Tensor) -> None:
        """Drop completions, and prompts that none of the kept completions belongs to.

        Args:
            rows: int64 [R'], ascending, the kept rows among the present ones.
            groups: int64 [R'], ascending, the present prompt index of each kept row.
        """
        kept, group = torch.unique_consecutive(groups, return_inverse=True)
        starts = torch.searchsorted(group, torch.arange(len(kept), device=group.device))
        rank = torch.arange(len(group), device=group.device) - starts[group]
        self._rows, self._width = len(rows), int(rank.max()) + 1
        full = self._rows == len(kept) * self._width
        self._slots = None if full else group * self._width + rank
        if len(kept) < len(self.prompt_lengths):
            self.prompt_lengths = [self.prompt_lengths[i] for i in kept.tolist()]
            width = max(self.prompt_lengths)
            for i, (k, v) in self._prompt.items():
                self._prompt[i] = k[kept, :, :width], v[kept, :, :width]
            self._padding = None if self._padding is None else self._padding[kept, :, :, :width]
        for i, (k, v) in self._own.items():  # one at a time: two whole caches might not fit
            self._own[i] = k[rows], v[rows]

    def _prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if query.shape[0] != 1 or query.shape[2] != sum(self.prompt_lengths):
            raise ValueError(
                f"PrefixCache: expected one row of {sum(self.prompt_lengths)} prompt tokens, "
                f"found {query.shape[0]} of {query.shape[2]}."
            )
        batch, heads, longest = len(self.prompt_lengths), key.shape[1], max(self.prompt_lengths)
        stored_key = key.new_zeros(batch, heads, longest, key.shape[-1])
        stored_value = value.new_zeros(batch, heads, longest, value.shape[-1])
        outputs = []
        parts = zip(*(x.split(self.prompt_lengths, dim=2) for x in (query, key, value)), strict=True)
        for i, (q, k, v) in enumerate(parts):
            stored_key[i, :, : k.shape[2]], stored_value[i, :, : v.shape[2]] = k[0], v[0]
            gqa = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
            outputs.append(out.transpose(1, 2))
        self._prompt[layer] = stored_key, stored_value
        if self._padding is None and min(self.prompt_lengths) < longest:
            lengths = torch.tensor(self.prompt_lengths, device=key.device)
            beyond = torch.arange(longest, device=key.device) >= lengths[:, None]
            self._padding = torch.zeros(beyond.shape, device=key.device).masked_fill(beyond, -torch.inf)[:, None, None]
        return torch.cat(outputs, dim=1)

    def _decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if query.shape[0] != self._rows or query.shape[2] != 1:
            raise ValueError(
                f"PrefixCache: expected {self._rows} rows of 1 token, found {query.shape[0]} of {query.shape[2]}."
            )
        own_key, own_value = self._append(layer, key, value)
        prompt_key, prompt_value = self._prompt[layer]
        rows, heads, dim = query.shape[0], query.shape[1], query.shape[-1]
        kv_heads = key.shape[1]
        repeat = heads // kv_heads
        queries = (query * scale).reshape(rows, kv_heads, repeat, dim)

        own = _partial_attention(queries, own_key, own_value, None)

        batch = prompt_key.shape[0]
        grid = queries
        if self._slots is not None:
            grid = queries.new_zeros(batch * self._width, kv_heads, repeat, dim)
            grid[self._slots] = queries
        grid = grid.reshape(batch, self._width, kv_heads, repeat, dim).transpose(1, 2).flatten(2, 3)
        shared = [
            x.unflatten(2, (self._width, repeat)).transpose(1, 2).flatten(0, 1)
            for x in _partial_attention(grid, prompt_key, prompt_value, self._padding)
        ]
        if self._slots is not None:
            shared = [x[self._slots] for x in shared]

        # softmax over two parts: each part's output weighted by its share of the total mass
        share = torch.sigmoid(own[1] - shared[1])
        output = torch.lerp(shared[0].float(), own[0].float(), share)
        return output.to(value.dtype).reshape(rows, 1, heads, -1)

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the step's key and value [R, H_kv, 1, D]; return all of the completions' [R, H_kv, length + 1, D]."""
        stored = self._own.get(layer)
        if stored is None or stored[0].shape[2] <= self.length:
            capacity = min(max(GROWTH, 2 * self.length), self.max_new_tokens)
            grown = tuple(x.new_empty(self._rows, x.shape[1], capacity, x.shape[-1]) for x in (key, value))
            if stored is not None:
                for new, old in zip(grown, stored, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            stored = grown[0], grown[1]
            self._own[layer] = stored
        stored[0][:, :, self.length] = key[:, :, 0]
        stored[1][:, :, self.length] = value[:, :, 0]
        return stored[0][:, :, : self.length + 1], stored[1][:, :, : self.length + 1]


def _partial_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention over some of the keys, with the log of its mass, by which parts are merged.

    Args:
        query: [B, H, Q, D], scaled.
        key: [B, H, K, D].
        value: [B, H, K, D].
        bias: float32, broadcast to [B, H, Q, K], or None.

    Returns:
        Output [B, H, Q, D] and float32 log-sum-exp of the scores [B, H, Q, 1].
    """
    scores = (query @ key.transpose(-1, -2)).float()
    if bias is not None:
        scores = scores + bias
    peak = scores.amax(dim=-1, keepdim=True)
    weights = (scores - peak).exp()
    mass = weights.sum(dim=-1, keepdim=True)
    return (weights / mass).to(value.dtype) @ value, peak + mass.log()


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
