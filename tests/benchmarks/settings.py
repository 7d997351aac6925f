"""What is measured: a model, prompts, and the shape of a rollout step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from src.models.loading.loading import PolicyConfig, load_tokenizer
from tests.benchmarks.models import QWEN3_06B, write_random, write_smollm2
from tests.benchmarks.prompts import ExampleSource, LengthRenderer


@dataclass(frozen=True)
class Setting:
    """A model and the work of one rollout step.

    Attributes:
        name: of the setting.
        write: writes the model folder that all contestants load.
        experiment: of `configs/experiment`, which the whole step runs.
        prompt_tokens: P.
        completions: G.
        new_tokens: R; no completion ends before.
        prompts: of a rollout step.
        max_row_tokens: longest packed row.
        padded_rows: rows that the padded form computes at once, as many as memory and speed like.
        trl_rows: TRL's per_device_train_batch_size.
    """

    name: str
    write: Callable[[Path], None]
    experiment: str
    prompt_tokens: int = 1000
    completions: int = 8
    new_tokens: int = 64
    prompts: int = 2
    max_row_tokens: int = 16384
    padded_rows: int = 8
    trl_rows: int = 8

    @property
    def case(self) -> str:
        """The shape, as results name it."""
        return f"P={self.prompt_tokens} G={self.completions} R={self.new_tokens}"


TINY = Setting("tiny", write_random, "tiny")
SMOLLM2 = Setting("smollm2", write_smollm2, "smollm2_135m", max_row_tokens=2048, padded_rows=2, trl_rows=2)
QWEN3 = Setting(
    "qwen3-0.6b at random",
    lambda folder: write_random(folder, **QWEN3_06B),
    "qwen3_1_7b",
    prompt_tokens=1500,
    new_tokens=256,
    prompts=1,
)
SMALL = Setting(
    "small",
    lambda folder: write_random(folder, width=64, inner=128, layers=2, heads=2, kv_heads=1, head_size=32),
    "tiny",
    prompt_tokens=40,
    completions=2,
    new_tokens=6,
    padded_rows=2,
    trl_rows=2,
)
"""Of no interest but to see that everything runs."""
SETTINGS = {setting.name: setting for setting in (TINY, SMOLLM2)}


def prompt_ids(folder: Path, data: Path | None, tokens: int, count: int, seed: int = 0) -> list[Tensor]:
    """`count` different prompts of exactly `tokens` tokens, int64.

    Args:
        folder: of the model whose tokenizer and chat template are used.
        data: rlla file; None: the synthetic corpus.
        tokens: length of each.
        count: how many.
        seed: other seeds give other prompts.
    """
    renderer = LengthRenderer(load_tokenizer(PolicyConfig(path=folder)), tokens=tokens)
    examples = ExampleSource(count, data, seed).load("train")
    return [renderer.render(example).prompt_ids for example in examples]


def as_lists(prompts: Sequence[Tensor]) -> list[list[int]]:
    """Prompts as JSON has them."""
    return [prompt.tolist() for prompt in prompts]
