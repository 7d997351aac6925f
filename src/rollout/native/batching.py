"""Continuous batching: prompts wait, decode together, and leave when their completions are done.

A prompt enters whole, with its n completions, longest prompts first (memory runs out at once or never). What a
completion samples depends on its prompt's own noise alone, so entering early or late changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.rollout.engine import SamplingParams
from src.rollout.native.decoding import Forward, prefill
from src.rollout.native.prefix_cache import Grid, PrefixCache, Room, StepLayout, grid_of, own_bias, room_for
from src.rollout.native.sampling import SampledTokens, prompt_noise, sample_tokens

COMPACT_BELOW = 0.8
"""Finished rows are dropped, and waiting prompts let in, once the live ones are fewer than this share."""
WIDEN_ABOVE = 1.5
"""The cache is laid out anew once shorter prompts let it hold this many times the completions."""


@dataclass(slots=True)
class Rows:
    """Completions in the batch, a vector of R entries each.

    Attributes:
        completion: which one of all; the number of all once it is done.
        slot: its prompt's, in the cache.
        token: sampled last.
        position: of that token.
        steps: tokens sampled.
        live: not done.
    """

    completion: Tensor
    slot: Tensor
    token: Tensor
    position: Tensor
    steps: Tensor
    live: Tensor

    def __len__(self) -> int:
        return len(self.completion)

    def take(self, index: Tensor) -> Rows:
        """Rows at `index`, int64 [n], in that order."""
        return Rows(*(getattr(self, f.name)[index] for f in fields(self)))

    def followed_by(self, other: Rows) -> Rows:
        """These, then the others."""
        return Rows(*(torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(self)))


class ContinuousBatch:
    """One call of `generate`.

    Args:
        model: in the rollout's attention.
        forward: its decode step.
        prompts: int64 [P_i] each.
        params: how to sample.
        seeds: one a prompt.
        max_sequences: see `NativeEngine`.
        max_batch_tokens: see `NativeEngine`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        prompts: Sequence[Tensor],
        params: SamplingParams,
        seeds: Sequence[int],
        *,
        max_sequences: int,
        max_batch_tokens: int,
    ) -> None:
        self._model, self._forward, self._device = model, forward, (device := model.device)
        self._prompts, self._params = prompts, params
        self._max_sequences, self._max_batch_tokens = max_sequences, max_batch_tokens
        self._waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        room = self._room(len(prompts), len(prompts[self._waiting[0]]))
        self._cache = PrefixCache(room, params.max_new_tokens)
        self._stop_ids = torch.tensor(params.stop_token_ids, dtype=torch.long, device=device)

        # [S + 1, T]: all completions, S = prompts x n, and one row for what is computed after an end
        count, longest = len(prompts) * params.n, params.max_new_tokens
        self._done = count
        self._tokens = torch.full((count + 1, longest), -1, device=device)
        self._numbers = torch.zeros(2, count + 1, longest, device=device)  # log-probabilities, entropies
        self._noise: Tensor | None = None
        if params.temperature > 0:
            drawn = [prompt_noise(seed, params.n, longest) for seed in seeds]
            self._noise = torch.cat([*drawn, torch.zeros(1, longest, dtype=torch.float64)]).to(device)

        nothing = torch.empty(0, dtype=torch.long, device=device)
        self._rows = Rows(nothing, nothing, nothing, nothing, nothing, nothing.bool())
        self._grid: Grid | None = None
        self._fed = 0  # steps since the batch was last empty
        self._even = True

    def run(self) -> SampledTokens:
        """Sample all; a row a completion, [S, T] each. Ids are -1 where nothing was sampled."""
        while True:
            alive = int(self._rows.live.sum())
            if alive == 0 or alive < COMPACT_BELOW * len(self._rows):
                self._drop_finished(alive)
                entered = self._admit()
                if len(self._rows) == 0:
                    return SampledTokens(self._tokens[:-1].cpu(), *self._numbers[:, :-1].cpu())
                self._grid = grid_of(self._rows.slot, self._cache.lengths)
                if entered:  # some may have ended with their first token
                    continue
            self._decode()

    def _decode(self) -> None:
        """Feed every row's last token and sample its next one."""
        rows, columns = self._rows, self._cache.columns
        assert self._grid is not None
        column, used = self._fed % columns, min(self._fed + 1, columns)
        bias = None if self._even else own_bias(rows.steps, column, used, columns)
        self._cache.layout = StepLayout(self._grid, len(rows), column, used, bias, rows.position, columns)
        logits = self._forward(rows.token, rows.position, self._cache)
        self._fed += 1
        rows.position += 1
        self._sample(rows, logits)

    def _sample(self, rows: Rows, logits: Tensor) -> None:
        """Choose the rows' next tokens by logits [R, V] and note which rows are done."""
        noise = None if self._noise is None else self._noise[rows.completion, rows.steps]
        rows.token, *numbers = sample_tokens(logits, noise, self._params)
        self._tokens[rows.completion, rows.steps] = rows.token
        self._numbers[:, rows.completion, rows.steps] = torch.stack(numbers)
        stopped = torch.isin(rows.token, self._stop_ids) | (rows.steps + 1 == self._params.max_new_tokens)
        rows.live &= ~stopped
        rows.completion = rows.completion.masked_fill(stopped, self._done)
        rows.steps = (rows.steps + 1).clamp_(max=self._params.max_new_tokens - 1)  # the end binds finished rows only

    def _drop_finished(self, alive: int) -> None:
        """Fill the places of finished rows, and of prompts without rows, with the last live ones."""
        rows, cache = self._rows, self._cache
        order, to, source = _closed_up(rows.live, alive)
        cache.move_rows(to, source, min(self._fed, cache.columns))
        self._rows = rows = rows.take(order)
        used = torch.zeros(len(cache.lengths), dtype=torch.bool, device=self._device)
        used[rows.slot] = True
        kept = int(used.sum())
        _, to, source = _closed_up(used, kept)
        cache.move_slots(to, source, kept)
        renamed = torch.arange(len(used), device=self._device)
        renamed[source] = to
        rows.slot = renamed[rows.slot]

    def _admit(self) -> bool:
        """Let waiting prompts in, as many as fit; whether any came."""
        cache, n, present = self._cache, self._params.n, len(self._rows)
        if not self._waiting:
            return False
        if present == 0:
            self._fed, self._even = 0, True
        self._widen()
        room = cache.room
        count = min(room.slots - len(cache.lengths), (room.rows - present) // n)
        entering, self._waiting = self._waiting[:count], self._waiting[count:]
        if not entering:
            return False
        first = len(cache.lengths)
        prompts = [self._prompts[i] for i in entering]
        logits = prefill(self._model, prompts, cache)

        def each(values: list[int]) -> Tensor:  # a value a prompt -> a value a completion
            return torch.tensor(values, device=self._device).repeat_interleave(n)

        offsets = torch.arange(n, device=self._device).repeat(len(entering))
        arrived = Rows(
            completion=each([i * n for i in entering]) + offsets,
            slot=each(list(range(first, first + len(entering)))),
            token=torch.empty(0),
            position=each([len(p) for p in prompts]),
            steps=torch.zeros_like(offsets),
            live=torch.ones_like(offsets, dtype=torch.bool),
        )
        self._sample(arrived, logits.repeat_interleave(n, dim=0))
        if self._fed:
            self._even = False
            cache.clear_rows(present, present + len(arrived), min(self._fed, cache.columns))
        self._rows = self._rows.followed_by(arrived)
        return True

    def _room(self, prompts: int, longest: int) -> Room:
        """What to make place for, of so many prompts of up to `longest` tokens."""
        return room_for(
            prompts,
            longest,
            self._params.n,
            self._params.max_new_tokens,
            max_sequences=self._max_sequences,
            max_batch_tokens=self._max_batch_tokens,
        )

    def _widen(self) -> None:
        """Lay the cache out anew where prompts that wait are so much shorter that many more fit."""
        cache = self._cache
        longest = max(max(cache.lengths, default=0), len(self._prompts[self._waiting[0]]))
        room = self._room(len(self._waiting) + len(cache.lengths), longest)
        if room.rows >= WIDEN_ABOVE * cache.room.rows and room.slots >= len(cache.lengths):
            cache.resize(room, len(self._rows), min(self._fed, cache.columns))


def _closed_up(kept: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """How to bring the kept places to the front by moving as few as possible.

    Example:
        >>> _closed_up(torch.tensor([True, False, True, False, True]), 3)  # place 4 moves to place 1
        (tensor([0, 4, 2]), tensor([1]), tensor([4]))

    Args:
        kept: bool [R].
        count: how many are kept.

    Returns:
        The order, int64 [count], and the moves: to, int64 [M], and from, int64 [M].
    """
    order = torch.arange(count, device=kept.device)
    to = (~kept[:count]).nonzero().squeeze(-1)
    source = kept[count:].nonzero().squeeze(-1) + count
    order[to] = source
    return order, to, source
