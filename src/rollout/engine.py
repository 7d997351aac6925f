"""What a rollout engine is: token ids in, sampled token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from src.utils.checks import check_fields


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        n: completions a prompt (G).
        temperature: divides the logits; 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 keeps everything.
        top_k: number of most likely tokens to keep; 0 keeps everything.
        max_new_tokens: longest completion, the stop token included.
        stop_token_ids: a completion ends with the first of these, which stays part of it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rules = (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0 (0 is greedy)"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0 (0 keeps all tokens)"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        )
        check_fields("sampling", self, rules)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: sampled ids, int64 [T], T >= 1, the stop token included.
        logprobs: log-probability of each id when it was sampled, float32 [T], under the temperature-scaled
            distribution before top-p and top-k cut it (unscaled when greedy).
        finish_reason: `stop` after a stop token, `length` at max_new_tokens.
        weights_version: version of the weights that sampled it.
    """

    token_ids: Tensor
    logprobs: Tensor
    finish_reason: Literal["stop", "length"]
    weights_version: int


class RolloutEngine(Protocol):
    """Samples completions from the policy's current weights. Knows token ids only."""

    @property
    def weights_version(self) -> int:
        """Version given with the last `update_weights`; 0 before the first."""
        ...

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Sample `params.n` completions for each prompt.

        Args:
            prompts: int64 [P_i] each, unpadded.
            params: how to sample.
            seeds: one a prompt. The same prompt, seed and weights give the same completions, whatever else is in the
                batch (up to floating-point ties).
        """
        ...

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights (names as in the model's state dict) and stamp what is sampled next with `version`."""
        ...
