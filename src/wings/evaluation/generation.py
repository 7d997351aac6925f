"""Answers to prompts from a rollout engine: greedy for benchmarks, batched, longest prompts first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, repeat

from torch import Tensor
from transformers import PreTrainedModel

from src.data.rendering import PromptRenderer
from src.protocol.dialogue import ChatPrompt
from src.protocol.regions import read_completion
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import RolloutEngine, SamplingParams
from src.wings.evaluation.benchmark import Answer


class EngineGenerate:
    """`Generate` by a rollout engine.

    Args:
        engine: samples; asked for one completion a prompt.
        renderer: chat messages to prompt ids.
        table: the tokenizer's tokens as bytes.
        stop_token_ids: end-of-turn tokens.
        max_new_tokens: longest answer.
        context: most tokens of prompt and answer together (the model's positions), or None for no limit. An answer is
            cut where it ends; a prompt that leaves no room is not answered.
        batch_size: prompts that go to the engine at once, and that are lost if the run is interrupted.
        sampling: temperature, top_p and top_k; None: greedy, which draws no random number.
        seed: of the first answer; each further one has the next.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        renderer: PromptRenderer,
        table: TokenBytes,
        stop_token_ids: tuple[int, ...],
        *,
        max_new_tokens: int,
        context: int | None,
        batch_size: int = 256,
        sampling: SamplingParams | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"generation.batch_size: expected at least 1, found {batch_size}.")
        self._engine = engine
        self._renderer = renderer
        self._table = table
        self._params = replace(
            sampling or SamplingParams(temperature=0.0),
            n=1,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
        )
        self._context = context
        self._batch_size = batch_size
        self._seeds: Iterator[int] = repeat(0) if sampling is None else count(seed)

    def __call__(self, prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        """See `Generate`."""
        ids = [self._renderer.encode_chat(prompt) for prompt in prompts]
        rooms = [self._room(prompt) for prompt in ids]
        for index, room in enumerate(rooms):
            if room == 0:
                yield index, replace(Answer.of(self._renderer.response_prefix), finish="context")
        fitting = [index for index, room in enumerate(rooms) if room > 0]
        # one call takes one limit: those with room for a whole answer go together, the few others by their room
        fitting.sort(key=lambda index: (rooms[index], -len(ids[index])))
        for batch in self._batches(fitting, rooms):
            params = replace(self._params, max_new_tokens=rooms[batch[0]])
            seeds = list(islice(self._seeds, len(batch)))
            completions = self._engine.generate([ids[index] for index in batch], params, seeds)
            for index, (completion,) in zip(batch, completions, strict=True):
                yield index, self._read(completion.token_ids, completion.finish_reason)

    def _room(self, prompt: Tensor) -> int:
        """Tokens that an answer may have."""
        wanted = self._params.max_new_tokens
        return wanted if self._context is None else max(0, min(wanted, self._context - len(prompt)))

    def _batches(self, indices: Sequence[int], rooms: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in indices:
            if batch and (len(batch) == self._batch_size or rooms[index] != rooms[batch[0]]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _read(self, token_ids: Tensor, finish_reason: str) -> Answer:
        decoded = read_completion(token_ids, self._table, self._params.stop_token_ids, self._renderer.response_prefix)
        return Answer(decoded.text, decoded.parsed, len(token_ids), finish_reason)


def context_of(model: PreTrainedModel) -> int | None:
    """Most tokens of prompt and answer together that the model has positions for, or None without such a limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)
