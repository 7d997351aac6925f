"""What a rollout engine is: token ids in, sampled token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from src.errors import check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from src.models.loading.policy_config import PolicyConfig


Cache = Literal["shared", "padded", "even", "none"]
"""How an engine in this process keeps what a model remembers. `shared`: a prompt's keys once for all its completions.
The others use the model's own cache. `padded`: prompts of all lengths in a batch; `even`: only those of one length;
`none`: no cache, every token is computed anew in each step."""


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
        entropies: of the distribution that `logprobs` are of, in nats, float32 [T]; None: the engine does not say.
        experts: of a mixture, to which experts prompt and completion but for its last token went, integers
            [P + T - 1, L, k] over all L layers; None: the engine does not say.
    """

    token_ids: Tensor
    logprobs: Tensor
    finish_reason: Literal["stop", "length"]
    weights_version: int
    entropies: Tensor | None = None
    experts: Tensor | None = None


@dataclass(frozen=True, slots=True)
class EngineSource:
    """The model whose weights an engine is to sample from; every config in `configs/rollout` makes an engine of one.

    Attributes:
        model: as it is trained. Its weights may be shards, or on the meta device until training starts.
        folder: with config.json and the tokenizer: a local folder or a hub id.
        dtype: in which the trainer runs its forwards; an engine that computes in another one disagrees with it.
        shared: whether an engine in this process may call `model` itself. Not where it is sharded.
        trust_remote_code: run Python code that comes with the model.
        cache: how an engine in this process may keep what the model remembers (`rollout.native.engine`); None: in no
            way that is known.
        mixed: whether the trainer runs its forwards under autocast; otherwise the weights have their type, or get it.
        longest: most tokens of prompt and completion together that are asked for; None: the model's positions.
    """

    model: PreTrainedModel
    folder: str
    dtype: torch.dtype = torch.float32
    shared: bool = True
    trust_remote_code: bool = False
    cache: Cache | None = "shared"
    mixed: bool = False
    longest: int | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        config: PolicyConfig,
        *,
        precision: str = "32-true",
        shared: bool = True,
        cache: Cache | None = "shared",
        longest: int | None = None,
    ) -> EngineSource:
        """The source of a loaded model.

        Args:
            model: as loaded by `config`.
            config: says where its architecture lies.
            precision: of Lightning's Trainer; under `bf16-mixed` forwards run in bfloat16 whatever the weights are.
            shared: whether an engine may call `model` itself.
            cache: as `config.guard` found it.
            longest: see the class.
        """
        from src.models.loading.files import locate  # the hub's library, which the checks of a config do without

        mixed = precision.startswith("bf16")
        dtype = torch.bfloat16 if mixed else model.dtype
        return cls(model, locate(config), dtype, shared, config.trust_remote_code, cache, mixed, longest)


def needs_copy(*, sharded: bool, stored: torch.dtype | None, forwards: torch.dtype) -> bool:
    """Whether an engine in this process samples from a copy of the policy, unless it is told otherwise.

    A sharded policy would make ranks wait for each other at every token. Float32 weights under a mixed precision would
    be converted anew for every token; the copy has the type of the trainer's forwards.

    >>> needs_copy(sharded=False, stored=torch.float32, forwards=torch.bfloat16)
    True

    Args:
        sharded: whether each rank holds a part of the policy.
        stored: type of its weights; None: they are packed in 4 bits, and stay the only ones.
        forwards: type of the trainer's forwards.
    """
    return sharded or (stored == torch.float32 and forwards != torch.float32)


class RolloutEngine(Protocol):
    """Samples completions from the policy's current weights. Knows token ids only.

    An engine that needs processes, devices or connections opens them at the first `update_weights` or `generate`: only
    then the trainer has set up its own.

    Attributes:
        copies_weights: whether it samples from weights of its own, which only `update_weights` changes.
        ranks_per_engine: consecutive ranks that are one engine together, and call `generate` equally often (tensor
            parallelism); 1.
    """

    copies_weights: bool
    ranks_per_engine: int

    @property
    def weights_version(self) -> int:
        """Version given with the last `update_weights`; before the first -1 if it copies weights, else 0."""
        ...

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and completion together; None: any number. Known once the engine has weights."""
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
        """Take new weights and stamp what is sampled next with `version`.

        Args:
            named_tensors: all weights of the plain architecture, adapters merged, names as in its state dict (a tied
                head is among them). On several ranks every rank iterates to the end, whatever it does with them: each
                tensor is gathered by all ranks together.
            version: the rollout steps that made them.
        """
        ...

    def release_memory(self) -> None:
        """Sampling is over until the next `update_weights`: the trainer may have what memory the engine can spare."""
        ...

    def close(self) -> None:
        """Give back processes, memory and connections; the engine is not used after."""
        ...


def check_prompts(prompts: Sequence[Tensor], seeds: Sequence[int]) -> None:
    """Refuse prompts int64 [P_i] that no engine samples from.

    Raises:
        ValueError: an empty prompt, or a wrong number of seeds.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"generate: expected one seed for each of {len(prompts)} prompts, found {len(seeds)}.")
    for index, prompt in enumerate(prompts):
        if prompt.ndim != 1 or len(prompt) == 0:
            raise ValueError(
                f"generate: expected prompt {index} to be a non-empty vector of ids, found shape {tuple(prompt.shape)}."
            )


def shortest(*limits: int | None) -> int | None:
    """The lowest of several limits of length; None is no limit.

    >>> shortest(None, 5, 3), shortest(None)
    (3, None)
    """
    return min((limit for limit in limits if limit is not None), default=None)
