"""Prompts of one length and a reward that always teaches, as `configs` would instantiate them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer, RenderedPrompt
from src.data.sources.rlla import RllaSource
from src.data.sources.synthetic.source import SyntheticSource
from src.protocol.dialogue import Message, TurnExample
from src.protocol.types import ParsedResponse
from src.rewards.tool_call import Reward, ToolCallReward


class ExampleSource:
    """The first examples of the synthetic corpus, or of an rlla file; for training only.

    Args:
        count: examples.
        data: the file; None: the synthetic corpus.
        seed: which examples.
    """

    name = "benchmark"

    def __init__(self, count: int, data: str | Path | None = None, seed: int = 0) -> None:
        self._count, self._data, self._seed = count, data, seed

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def load(self, split: str) -> list[TurnExample]:
        if self._data is None:
            return SyntheticSource(self._count, 1, seed=1000 + self._seed).load(split)
        examples = RllaSource(path=str(self._data)).load(split)
        start = self._seed * self._count % max(1, len(examples) - self._count)
        return examples[start : start + self._count]


class LengthRenderer(PromptRenderer):
    """Renders prompts of exactly `tokens` tokens: the end of a longer prompt, or a shorter one after earlier prompts.

    Args:
        tokenizer: see `PromptRenderer`.
        layout: see `PromptRenderer`.
        tokens: of each prompt.
        **prompt: see `PromptRenderer`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, layout: Any = "published", *, tokens: int, **prompt: Any
    ) -> None:
        super().__init__(tokenizer, layout, **prompt)
        self._tokens = tokens
        self._before = torch.empty(0, dtype=torch.int64)

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        return [self._longer(prompt) for prompt in super().render_all(examples)]

    def _longer(self, prompt: RenderedPrompt) -> RenderedPrompt:
        ids = torch.cat([self._before, prompt.prompt_ids])
        while len(ids) < self._tokens:
            ids = torch.cat([prompt.prompt_ids, ids])
        self._before = ids[-self._tokens :]
        return replace(prompt, prompt_ids=self._before)


class VariedReward(ToolCallReward):
    """The reward of `configs/reward`, with 1 added for a text of an even number of bytes, so that the completions of a
    prompt differ in what they earn and every group has a gradient.
    """

    def __call__(
        self, text: str, parsed: ParsedResponse, target: Message, *, rollout_step: int, progress: float = 0.0
    ) -> Reward:
        reward = super().__call__(text, parsed, target, rollout_step=rollout_step, progress=progress)
        return replace(reward, total=reward.total + float(len(text.encode()) % 2 == 0))
