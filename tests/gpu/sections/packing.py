"""(2) A packed row against one sequence at a time: log-probabilities, entropies and the gradient, bf16 and fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.models.policy import Policy
from tests.benchmarks.models import random_model
from tests.benchmarks.padded import random_groups, slices
from tests.gpu.settings import Found, Proof

SHAPE = {"vocabulary": 151_936, "width": 1024, "inner": 3072, "layers": 8, "heads": 16, "kv_heads": 8, "head_size": 128}
SMALL = {"vocabulary": 512, "width": 128, "inner": 256, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 64}
BARS = {
    "fp32": {"log-probabilities": 1e-4, "entropies": 1e-4, "gradient": 1e-4},
    "bf16": {"log-probabilities": 5e-2, "entropies": 5e-2, "gradient": 5e-2},
}
"""Largest gap in nats, and the norm of the gradients' difference over the gradient's."""


def prove(proof: Proof) -> Iterator[Found]:
    shape = SMALL if proof.small else SHAPE
    prompts = [150, 61] if proof.small else [1500, 611]
    policies = {  # a model each, since a policy sets its model's attention
        rows: Policy(random_model(**shape), rows=rows).to(proof.where).train() for rows in ("packed", "separate")
    }
    ids = [torch.arange(3, 3 + length) % shape["vocabulary"] for length in prompts]
    length = 33 if proof.small else 256
    groups = [group.to(proof.where) for group in random_groups(ids, 4, length, shape["vocabulary"])]
    single = [part for group in groups for part in slices(group, 1)]
    for precision, bars in BARS.items():
        packed = measured(policies["packed"], [groups], precision == "bf16")
        alone = measured(policies["separate"], [[part] for part in single], precision == "bf16")
        gaps = {
            "log-probabilities": float((packed[0] - alone[0]).abs().max()),
            "entropies": float((packed[1] - alone[1]).abs().max()),
            "gradient": float((packed[2] - alone[2]).norm() / alone[2].norm()),
        }
        for quantity, gap in gaps.items():
            yield proof.result(
                "packing",
                f"{precision}, prompts of {prompts}, 4 completions of {length}",
                f"{quantity}: packed and one at a time",
                gap,
                bar=bars[quantity],
                at_most=True,
            )


def measured(policy: Policy, rows: list[list[PromptGroup]], bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [N], entropies [N] and the flat gradient of a sum over both, of the same weights."""
    policy.zero_grad(set_to_none=True)
    logprobs, entropies = [], []
    device = next(policy.parameters()).device
    for groups in rows:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            scores = policy(pack(groups))
        (scores.logprobs - 0.5 * scores.entropies).sum().backward()
        logprobs.append(scores.logprobs.detach())
        entropies.append(scores.entropies.detach())
    gradient = torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.grad is not None])
    return torch.cat(logprobs), torch.cat(entropies), gradient
