"""A policy and an engine for tests of the parts of training: a table of logits, and completions that are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import PackedRow
from src.models.policy import TokenScores
from src.rollout.engine import Completion, SamplingParams


class FakePolicy(nn.Module):
    """Says the same of a token wherever it stands: its log-probability is that of softmax(logits / temperature).

    Args:
        logits: of each token of the vocabulary.
        room: tokens of the longest row that fits into memory.

    Attributes:
        full: what a longer one raises.
    """

    full: Exception = torch.OutOfMemoryError("simulated")

    def __init__(self, logits: Sequence[float], room: int = 10**9) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.model = self.logits  # what an engine would be given
        self.room = room
        self.router_loss = 0.0
        self.rows: list[int] = []  # tokens of every row so far

    def forward(self, row: PackedRow, *, temperature: float = 1.0, loss: Any = None, **_: Any) -> TokenScores:
        self.rows.append(len(row.input_ids))
        if self.rows[-1] > self.room:
            raise self.full
        every = torch.log_softmax(self.logits / temperature, dim=0)
        logprobs = every[row.targets]
        entropies = -(every.exp() * every).sum().detach().expand(len(row.targets))
        if loss is None:
            return TokenScores(logprobs, entropies)
        return TokenScores(logprobs.detach(), entropies, loss=loss(logprobs, entropies, slice(None)))


class PlainOptimization:
    """`Optimization` with an optimizer of PyTorch and no trainer."""

    replicated = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.steps = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def unreduced(self) -> Any:
        return torch.enable_grad()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.steps += 1

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class FakeEngine:
    """Answers every prompt with the same tokens, and notes what it is asked.

    Args:
        tokens: of each completion.
        logprob: of each of them.
        copies_weights: what it says of itself.
        failures: so many first calls of `generate` raise.
    """

    ranks_per_engine = 1
    context = None

    def __init__(
        self, tokens: Sequence[int], logprob: float = -1.0, *, copies_weights: bool = False, failures: int = 0
    ) -> None:
        self.tokens, self.logprob, self.copies_weights, self.failures = tokens, logprob, copies_weights, failures
        self.weights_version = 0
        self.calls: list[tuple[int, SamplingParams]] = []  # prompts, params
        self.events: list[str] = []

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.calls.append((len(prompts), params))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("connection lost")
        ids = torch.tensor(self.tokens)
        one = Completion(ids, torch.full((len(ids),), self.logprob), "stop", self.weights_version)
        return [[one] * params.n for _ in prompts]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.weights_version = version
        self.events.append(f"weights {version}")

    def release_memory(self) -> None:
        self.events.append("release")

    def close(self) -> None:
        self.events.append("close")


def group(tokens: Sequence[Sequence[int]], advantages: Sequence[float], prompt: Sequence[int] = (0, 0)) -> PromptGroup:
    """A group of these completions with token weights of 1 and log-probabilities of -1 from the sampler."""
    flat = torch.tensor([token for completion in tokens for token in completion])
    return PromptGroup(
        prompt_ids=torch.tensor(prompt),
        token_ids=flat,
        lengths=torch.tensor([len(completion) for completion in tokens]),
        rollout_logprobs=torch.full((len(flat),), -1.0),
        regions=torch.zeros(len(flat), dtype=torch.long),
        rewards=torch.tensor(advantages),
        advantages=torch.tensor(advantages),
        weights=torch.ones(len(flat)),
    )


class Told:
    """Collects what is announced."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **values: Any) -> None:
        self.events.append((event, values))
