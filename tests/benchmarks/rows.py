"""Packed and separate rows side by side: the same gradient, and how long a forward and a backward take.

    python -m tests.benchmarks.rows

A random Qwen3 of 4 layers and 512 features, a prompt of 1,000 tokens with 8 completions; the best of three, in turns.
"""

from __future__ import annotations

import sys
import time

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from src.algorithm.packing import pack
from src.models.policy import Policy
from tests.models.reference import random_group

_VOCABULARY = 8192
_SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 4096,
}


def policy(rows: str) -> Policy:
    """The same random weights in every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**_SHAPE), dtype=torch.float32)
    return Policy(model, rows="separate" if rows == "separate" else "packed")


def compare(tokens: int, prompt: int = 1000, completions: int = 8, repeats: int = 3) -> str:
    """A line on completions of so many tokens."""
    row = pack([random_group(prompt, [tokens] * completions, _VOCABULARY, 1)])
    seconds: dict[str, list[float]] = {"packed": [], "separate": []}
    gradients: dict[str, torch.Tensor] = {}
    policies = {rows: policy(rows) for rows in seconds}
    for _ in range(repeats):
        for rows, one in policies.items():
            one.zero_grad()
            started = time.perf_counter()
            (one(row).logprobs * torch.linspace(-1, 2, tokens * completions)).sum().backward()
            seconds[rows].append(time.perf_counter() - started)
            gradients[rows] = torch.cat([p.grad.flatten().double() for p in one.parameters() if p.grad is not None])
    packed, separate = (min(seconds[rows]) for rows in ("packed", "separate"))
    gap = (gradients["packed"] - gradients["separate"]).norm() / gradients["packed"].norm()
    return (
        f"{completions} completions of {tokens:>3} tokens: gradients differ by {float(gap):.1e} of their norm; packed "
        f"{packed:.1f} s, separate {separate:.1f} s, {separate / packed:.2f} times as long\n"
    )


if __name__ == "__main__":
    for length in (60, 200, 400):
        sys.stdout.write(compare(length))
        sys.stdout.flush()
