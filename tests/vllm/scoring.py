"""What the trainer says about an engine's completions, and weights that move."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.algorithm.packing import pack_sequences
from src.models.policy import Policy
from src.rollout.engine import Completion

SMALL_ENGINE = {"enforce_eager": True, "kv_cache_gib": 0.1, "max_model_len": 512, "max_num_seqs": 16}


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 500, (length,), generator=generator) for length in lengths]


def gap(
    model: PreTrainedModel, asked: Sequence[Tensor], sampled: Sequence[Sequence[Completion]], temperature: float = 1.0
) -> float:
    """Largest |engine - trainer| log-probability of a sampled token."""
    pairs = [(prompt, c.token_ids) for prompt, group in zip(asked, sampled, strict=True) for c in group]
    with torch.no_grad():
        scores = Policy(model)(pack_sequences(pairs), temperature=temperature or 1.0)
    return float((scores.logprobs - torch.cat([c.logprobs for group in sampled for c in group])).abs().max())


def nudge(model: PreTrainedModel, seed: int) -> None:
    """Move all weights, far enough to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def ids(sampled: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids.tolist() for completion in group] for group in sampled]


def parted(one: Sequence[Sequence[list[int]]], other: Sequence[Sequence[list[int]]]) -> int:
    """How many completions are not the same in both.

    In batches of other shapes, which a server makes of requests as they come, logits differ by 1e-6. A token that is
    drawn from nearly equal ones is another then about once in a million: 240 completions of 24 tokens part with a
    chance of 0.6 %, and three of them with one of 3e-8. With other noise all of them would.
    """
    pairs = [pair for groups in zip(one, other, strict=True) for pair in zip(*groups, strict=True)]
    return sum(a != b for a, b in pairs)
