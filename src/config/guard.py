"""A loaded policy and its engine against the plain model, on a few tokens, before anything is trained or scored.

Which models packed rows and the shared-prefix cache compute rightly cannot be told from names: layers may drop what
they are given, mask by themselves, or keep a state. Numbers can tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.errors import ConfigError
from src.models.policy import Policy
from src.rollout.engine import Completion, RolloutEngine, SamplingParams
from src.rollout.native.engine import evaluation_mode

log = logging.getLogger(__name__)

_PROMPTS = (19, 7)
_COMPLETIONS = ((3, 9, 1), (4, 2))
_LARGEST_ON_CPU = 3e9
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.25
"""In nats. Rounding is 3e-5 in float32 on 30 layers; what was wrong was off by 0.04 and more."""


def check_policy_and_engine(policy: Policy, engine: RolloutEngine, tokens: int) -> None:
    """Both checks; an engine with weights of its own is compared after each update instead (`rollout.probe`).

    Args:
        policy: on the device that its engine samples on.
        engine: that samples for it.
        tokens: see `check_engine`; 0: the engine is not compared.

    Raises:
        ConfigError: see `check_packed` and `check_engine`.
    """
    check_packed(policy)
    if tokens and not engine.copies_weights:
        check_engine(engine, policy.model, tokens)


def check_packed(policy: Policy) -> None:
    """Compare the policy on a packed row of two ragged groups with its model on each sequence by itself.

    Raises:
        ConfigError: they differ; names the gap.
    """
    model, device = policy.model, policy.model.device
    if not _quick(model):
        return
    groups = [
        _group(prompt, lengths, _vocabulary(model), seed)
        for seed, (prompt, lengths) in enumerate(zip(_PROMPTS, _COMPLETIONS, strict=True))
    ]
    with torch.no_grad(), evaluation_mode(policy):
        found = policy(pack(groups).to(device)).logprobs
        plain = [
            _plain(model, group.prompt_ids, completion)
            for group in groups
            for completion in group.token_ids.split(group.lengths.tolist())
        ]
    _check(
        model,
        found,
        torch.cat(plain),
        "packed rows give other log-probabilities than the model gives for one sequence at a time",
        "Choose a model such as Qwen3 or Llama.",
    )


def check_engine(engine: RolloutEngine, model: PreTrainedModel, tokens: int = 16) -> None:
    """Compare the log-probabilities that an engine reports for what it samples with the model's own.

    Args:
        engine: has the model's weights.
        model: the plain one.
        tokens: to sample, of each of two prompts.

    Raises:
        ConfigError: they differ; names the gap.
    """
    if not _quick(model):
        return
    prompts = [_ids(length, _vocabulary(model), seed) for seed, length in enumerate(_PROMPTS)]
    params = SamplingParams(n=1, temperature=0.0, max_new_tokens=tokens)
    sampled: Sequence[Sequence[Completion]] = engine.generate(prompts, params, [0] * len(prompts))
    with torch.no_grad(), evaluation_mode(model):
        plain = [_plain(model, ids, one.token_ids) for ids, (one,) in zip(prompts, sampled, strict=True)]
    _check(
        model,
        torch.cat([one.logprobs for (one,) in sampled]),
        torch.cat(plain),
        "the rollout engine reports other log-probabilities than the model has",
        "Set rollout=vllm, or choose a model such as Qwen3 or Llama.",
    )


def _check(model: PreTrainedModel, found: Tensor, plain: Tensor, what: str, advice: str) -> None:
    gap = float((found.cpu().double() - plain.cpu().double()).abs().max())
    limit = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    if not gap <= limit:
        raise ConfigError(
            f"policy: model type '{model.config.model_type}': {what}, by up to {gap:.2g} nats, expected at most "
            f"{limit:g} ({model.dtype}). {advice}"
        )
    log.debug("%s: %.1e nats", what, gap)


def _plain(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Tensor:
    """Log-probability of each token of a completion, one sequence at a time, without a cache."""
    ids = torch.cat([prompt, completion]).to(model.device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(1, completion.to(model.device)[:, None])[:, 0]


def _group(prompt: int, lengths: Sequence[int], vocabulary: int, seed: int) -> PromptGroup:
    tokens, completions = sum(lengths), len(lengths)
    return PromptGroup(
        prompt_ids=_ids(prompt, vocabulary, seed),
        token_ids=_ids(tokens, vocabulary, seed + len(_PROMPTS)),
        lengths=torch.tensor(lengths),
        rollout_logprobs=torch.zeros(tokens),
        regions=torch.zeros(tokens, dtype=torch.long),
        rewards=torch.zeros(completions),
        advantages=torch.zeros(completions),
        weights=torch.ones(tokens),
    )


def _ids(length: int, vocabulary: int, seed: int) -> Tensor:
    """Random tokens, drawn from nobody else's stream."""
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _quick(model: PreTrainedModel) -> bool:
    """Whether a few forwards take seconds."""
    size = model.num_parameters()
    if model.device.type == "cpu" and size > _LARGEST_ON_CPU:
        log.info("The policy of %.0f billion weights is not compared with its plain model on a CPU.", size / 1e9)
        return False
    return True
