"""Forward passes of a rollout: prefill of new prompts, and one token for each completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.rollout.native.lean_decoder import LeanDecoder, is_lean
from src.rollout.native.prefix_cache import PrefixCache
from src.rollout.native.step_layout import Grid, StepLayout, own_bias


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Completions R that take their next token.

    Attributes:
        tokens: int64 [R], the last of each.
        positions: int64 [R], theirs.
        steps: int64 [R], tokens fed, this one included.
        grid: completions by prompt.
        column: of the cache, where the step writes.
        used: columns that hold something, this one included.
        even: all completions have fed equally many tokens.
    """

    tokens: Tensor
    positions: Tensor
    steps: Tensor
    grid: Grid
    column: int
    used: int
    even: bool


class Forward(Protocol):
    """A model's pass over one token a row."""

    def __call__(self, tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        """Logits [R, V] after tokens [R] at positions [R], with a cache that has the step's layout."""
        ...


class Step(Protocol):
    """A decode step."""

    def __call__(self, inputs: StepInputs, cache: PrefixCache) -> Tensor:
        """Logits [R, V] after the inputs; their keys are in the cache then."""
        ...


def forward_for(model: PreTrainedModel, positions: int) -> Forward:
    """The leanest exact pass for this model, at positions below `positions`."""
    if is_lean(model):
        return LeanDecoder(model, positions)

    def forward(tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        output = model(input_ids=tokens[:, None], position_ids=positions[:, None], use_cache=False, prefix_cache=cache)
        return output.logits[:, -1]

    return forward


def prefill(model: PreTrainedModel, prompts: Sequence[Tensor], cache: PrefixCache) -> Tensor:
    """Put prompts int64 [P_i] into the cache; logits [B, V] after each."""
    device = model.device
    lengths = [len(p) for p in prompts]
    with cache.prefilling(lengths):
        output = model(
            input_ids=torch.cat(list(prompts)).to(device)[None],
            position_ids=torch.cat([torch.arange(length, device=device) for length in lengths])[None],
            logits_to_keep=torch.tensor(lengths, device=device).cumsum(0) - 1,
            use_cache=False,
            prefix_cache=cache,
        )
    return output.logits[0]


class ExactStep:
    """Computes as many rows, prompts and columns as there are."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def __call__(self, inputs: StepInputs, cache: PrefixCache) -> Tensor:
        """See `Step`."""
        bias = None if inputs.even else own_bias(inputs.steps, inputs.column, inputs.used, cache.columns)
        cache.layout = StepLayout(inputs.grid, len(inputs.tokens), inputs.column, inputs.used, bias)
        return self._forward(inputs.tokens, inputs.positions, cache)
