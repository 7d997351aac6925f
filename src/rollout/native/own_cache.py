"""Sampling on a model's own cache, by transformers' `generate`: right for what the shared-prefix cache does not know.

Recurrent and convolutional states, caches of latent vectors, layers that attend several times: whatever a model keeps,
its own code keeps it. Each completion is a row of its own, and its prompt is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from src.rollout.engine import Cache, SamplingParams
from src.rollout.native.sampling import SampledTokens, prompt_noise, sample_tokens


def sample_with_own_cache(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    cache: Cache,
    max_sequences: int,
    max_batch_tokens: int,
    watch: Callable[[Tensor], None] | None = None,
) -> SampledTokens:
    """Sample `params.n` completions for each prompt.

    Args:
        model: in evaluation mode and in an attention of its own.
        prompts: int64 [P_i] each, at least one.
        params: how to sample.
        seeds: one a prompt.
        cache: any but `shared`.
        max_sequences: most completions in a batch.
        max_batch_tokens: most tokens in a batch, every completion counted at its longest. One prompt with its
            completions always fits.
        watch: see `NativeEngine.watch`.

    Returns:
        A row a completion, [S, T] each, S = prompts x n. Ids are -1 where nothing was sampled.
    """
    count, longest, n = len(prompts) * params.n, params.max_new_tokens, params.n
    tokens, numbers = torch.full((count, longest), -1), torch.zeros(2, count, longest)
    with _plain_generation(model):
        for batch in _batches([len(p) for p in prompts], params, cache, max_sequences, max_batch_tokens):
            noise = None
            if params.temperature > 0:
                noise = torch.cat([prompt_noise(seeds[i], n, longest) for i in batch]).to(model.device)
            sampler = _Sampler(len(batch) * n, noise, params, model.device, watch)
            width = max(len(prompts[i]) for i in batch)
            padding = [width - len(prompts[i]) for i in batch]
            ids = [F.pad(prompts[i].cpu(), (left, 0)) for i, left in zip(batch, padding, strict=True)]
            seen = torch.arange(width) >= torch.tensor(padding)[:, None]
            inputs = {"input_ids": torch.stack(ids), "attention_mask": seen.long()}
            generate: Any = model.generate
            generate(
                **{name: value.repeat_interleave(n, dim=0).to(model.device) for name, value in inputs.items()},
                generation_config=GenerationConfig(
                    max_new_tokens=longest,
                    eos_token_id=list(params.stop_token_ids) or None,
                    pad_token_id=0,
                    use_cache=cache != "none",
                ),
                logits_processor=[sampler],
            )
            places = torch.cat([torch.arange(i * n, (i + 1) * n) for i in batch])
            tokens[places], numbers[:, places] = sampler.tokens.cpu(), sampler.numbers.cpu()
    return SampledTokens(tokens, *numbers)


class _Sampler(LogitsProcessor):
    """Chooses the tokens as `ContinuousBatch` does, and leaves `generate` no other choice.

    Attributes:
        tokens: int64 [R, T], -1 where nothing was sampled yet.
        numbers: float32 [2, R, T], log-probabilities and entropies.
    """

    def __init__(
        self,
        rows: int,
        noise: Tensor | None,
        params: SamplingParams,
        device: torch.device,
        watch: Callable[[Tensor], None] | None,
    ) -> None:
        self.tokens = torch.full((rows, params.max_new_tokens), -1, device=device)
        self.numbers = torch.zeros(2, rows, params.max_new_tokens, device=device)
        self._noise, self._params, self._watch, self._step = noise, params, watch, 0
        self._stop_ids = torch.tensor(params.stop_token_ids, dtype=torch.long, device=device)
        self._live = torch.ones(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V] of which `generate` can only take the chosen tokens."""
        step = self._step
        if step and self._watch is not None:
            self._watch(self.tokens[:, step - 1])
        chosen, *numbers = sample_tokens(scores, None if self._noise is None else self._noise[:, step], self._params)
        self.tokens[:, step] = torch.where(self._live, chosen, -1)
        self.numbers[:, :, step] = torch.where(self._live, torch.stack(numbers), 0.0)
        self._live &= ~torch.isin(chosen, self._stop_ids)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _batches(
    lengths: Sequence[int], params: SamplingParams, cache: Cache, max_sequences: int, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts that are sampled together, the longest first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = (len(batch) + 1) * params.n
        if batch and (
            rows > max_sequences
            or rows * (lengths[batch[0]] + params.max_new_tokens) > max_batch_tokens
            or (cache != "padded" and lengths[index] != lengths[batch[0]])
        ):
            yield batch
            batch = []
        batch.append(index)
    yield batch


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Without what the model's generation config adds, such as penalties or forced tokens; it is put back."""
    before: Any = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
