"""The head alone, forward and backward to hidden states and weight: `ours`, or with the `full` logits [N, V]."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from src.models.head.head import token_loss
from tests.benchmarks.resident import peak_of
from tests.benchmarks.serving import Channel


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    """Loss of N tokens; log-probabilities and entropies come with it."""
    return token_loss(hidden, weight, targets, lambda logprobs, _, part: -(advantages[part] * logprobs).sum())[0]


def full(hidden: Tensor, weight: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    """The same as it is usually written; entropies without gradient."""
    logp = (hidden @ weight.T).log_softmax(-1)
    with torch.no_grad():
        -(logp.exp() * logp).sum(-1)
    return -(advantages * logp.gather(1, targets[:, None])[:, 0]).sum()


def main() -> None:
    channel = Channel()
    job = channel.receive()
    generator = torch.Generator().manual_seed(0)
    tokens, vocabulary, size = job["tokens"], job["vocabulary"], job["hidden"]
    hidden = torch.randn(tokens, size, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, size, generator=generator).mul_(size**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    advantages = torch.randn(tokens, generator=generator)
    form = {"ours": ours, "full": full}[job["form"]]

    def run() -> float:
        hidden.grad = weight.grad = None
        loss = form(hidden, weight, targets, advantages)
        loss.backward()
        return float(loss)

    def timed() -> dict[str, Any]:
        started = time.perf_counter()
        loss = run()
        seconds = time.perf_counter() - started
        assert weight.grad is not None
        return {"seconds": seconds, "loss": loss, "gradient_norm": float(weight.grad.norm())}

    def memory() -> dict[str, Any]:
        hidden.grad = weight.grad = None
        return {"bytes": peak_of(run)}

    channel.send(threads=torch.get_num_threads())
    channel.serve({"update": timed, "memory": memory})


if __name__ == "__main__":
    main()
