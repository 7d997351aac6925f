"""How a model's rows and samples are computed, found by comparing numbers before anything is trained or scored.

Which models packed rows and the shared-prefix cache compute rightly cannot be told from names: layers may drop what
they are given, mask by themselves, or keep a state. Numbers can tell. `find_ways` compares the faster ways with the
plain model, one sequence at a time, on the architecture in small (`models.loading.cut`), past its windows; the checks
below it compare the loaded weights, where that takes seconds.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack
from src.config.result_cache import ResultCache
from src.errors import ConfigError
from src.models.loading.architecture import empty_model, load_architecture
from src.models.loading.cut import cut_model
from src.models.loading.policy_config import PolicyConfig
from src.models.policy import Policy
from src.models.structure import freeze_unused, head_of
from src.rollout.engine import Cache, Completion, RolloutEngine, SamplingParams
from src.rollout.native.engine import NativeEngine, evaluation_mode

log = logging.getLogger(__name__)

Rows = Literal["packed", "separate"]

_ROWS: tuple[Rows, ...] = ("packed", "separate")
_CACHES: tuple[Cache, ...] = ("shared", "padded", "even", "none")
_PROMPTS = (40, 23)
_COMPLETIONS = ((5, 20, 12), (9, 3))
_SAMPLES = SamplingParams(n=4, max_new_tokens=24)
_EXACT = 3e-4
"""In nats, of float32 models in small: rounding is 1e-6 to 6e-5, and a clamp that one of two kernels lacks 3e-3."""
_EXACT_GRADIENT = 1e-3
"""Of the gradient's norm: rounding is 1e-6 to 2e-4, and what was wrong 0.03 and more."""
_SHORT_PROMPTS = (19, 7)
_SHORT_COMPLETIONS = ((3, 9, 1), (4, 2))
_LARGEST_ON_CPU = 3e9
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.25
"""In nats, of loaded weights. Rounding is 3e-5 in float32 on 30 layers; what was wrong was off by 0.04 and more."""


class Ways(NamedTuple):
    """What is right for a model, the fastest first.

    Attributes:
        rows: how the decoder runs over rows; see `models.rows`.
        cache: how the native engine keeps what the model remembers; None: no way was right.
    """

    rows: Rows
    cache: Cache | None


def find_ways(policy: PolicyConfig, cache: Path | None = None) -> Ways:
    """The ways that give the plain model's numbers.

    Args:
        policy: whose architecture it is, and `rows` where they are not `auto`.
        cache: a file that keeps the results, as long as sources and packages stay the same; None: none is kept.

    Raises:
        ConfigError: no row gives the model's numbers, or those that are asked for do not; or the model cannot be run.
    """
    architecture = load_architecture(policy)
    kept = ResultCache(cache if not policy.trust_remote_code else None)
    described = architecture.to_dict() | {"_name_or_path": ""}  # which folder it is in changes nothing
    key = hashlib.sha256(repr((policy.rows, described)).encode()).hexdigest()
    found = kept.get(key)
    if found is None:
        found = _ways_of(architecture, policy)
        kept.put(key, list(found))
        kept.save()
    ways = Ways(*found)
    if policy.rows == "auto" and ways.rows == "separate":
        log.info(
            "Model type '%s' runs on separate rows: packed ones, which compute a prompt once for all its completions, "
            "would not give its numbers.",
            architecture.model_type,
        )
    return ways


def _ways_of(architecture: PretrainedConfig, policy: PolicyConfig) -> Ways:
    try:
        model = cut_model(architecture, trust=policy.trust_remote_code)
    except Exception as error:  # noqa: BLE001 (of code that may be anybody's, on a config that was changed)
        empty_model(architecture, torch.float32, trust=policy.trust_remote_code)  # raises if the whole cannot either
        log.warning(
            "Model type '%s' could not be made in small (%s), so that packed rows were not compared with separate "
            "ones. It runs on separate rows, and samples on its own cache with prompts of one length at a time.",
            architecture.model_type,
            _line(error),
        )
        return Ways("separate" if policy.rows == "auto" else policy.rows, "even")
    return compare_ways(model, _ROWS if policy.rows == "auto" else (policy.rows,))


def compare_ways(model: PreTrainedModel, rows: Sequence[Rows] = _ROWS, caches: Sequence[Cache] = _CACHES) -> Ways:
    """The first of the given ways that give the numbers of a model in float32 on one sequence at a time.

    Args:
        model: small; its attention function and its gradients are changed.
        rows: to try.
        caches: to try.

    Raises:
        ConfigError: the model cannot be run or has no linear head, or no kind of rows is right.
    """
    head_of(model)
    freeze_unused(model)
    groups = _groups(model, _PROMPTS, _COMPLETIONS)
    try:
        with _plain_attention(model):
            expected, gradient = _scored(model, lambda: torch.cat(list(_sequences(model, groups))))
    except Exception as error:
        raise ConfigError(
            f"policy: model type '{model.config.model_type}' with the values of this config.json does not score plain "
            f"text: {_line(error)}. Are they the published ones? Else choose a model that docs/models.md lists."
        ) from error
    tried: dict[str, str] = {}
    for way in rows:
        try:
            policy = Policy(model, rows=way).eval()
            found, its_gradient = _scored(model, partial(_in_a_row, policy, groups))
        except Exception as error:  # noqa: BLE001 (layers may fail in any way on what they do not expect)
            tried[way] = _line(error)
            continue
        gap, gradient_gap = _largest(found, expected), _relative(its_gradient, gradient)
        if gap <= _EXACT and gradient_gap <= _EXACT_GRADIENT:
            return Ways(way, _engine_cache(model, caches))
        tried[way] = f"{gap:.2g} nats and {gradient_gap:.2g} of the gradient off"
    reasons = "; ".join(f"policy.rows={way}: {reason}" for way, reason in tried.items())
    raise ConfigError(
        f"policy: model type '{model.config.model_type}' in small does not give the numbers of one sequence at a time "
        f"({reasons}), expected at most {_EXACT:g} nats. Are the values of config.json the published ones? Else choose "
        "a model that docs/models.md lists as right."
    )


def _engine_cache(model: PreTrainedModel, caches: Sequence[Cache]) -> Cache | None:
    prompts = [_ids(length, _vocabulary(model), seed) for seed, length in enumerate(_PROMPTS)]
    for cache in caches:
        try:
            gap = _engine_gap(NativeEngine(model, cache=cache), model, prompts, _SAMPLES)
        except Exception as error:  # noqa: BLE001 (the same)
            log.debug("rollout.cache=%s: %s", cache, _line(error))
            continue
        if gap <= _EXACT:
            return cache
        log.debug("rollout.cache=%s: %.2g nats off", cache, gap)
    return None


def check_policy_and_engine(policy: Policy, engine: RolloutEngine, tokens: int) -> None:
    """Both checks; an engine with weights of its own is compared after each update instead (`rollout.probe`).

    Args:
        policy: on the device that its engine samples on.
        engine: that samples for it.
        tokens: see `check_engine`; 0: the engine is not compared.

    Raises:
        ConfigError: see `check_rows` and `check_engine`.
    """
    check_rows(policy)
    if tokens and not engine.copies_weights:
        check_engine(engine, policy.model, tokens)


def check_rows(policy: Policy) -> None:
    """Compare the policy on a row of two ragged groups with its model on each sequence by itself.

    Raises:
        ConfigError: they differ; names the gap.
    """
    model = policy.model
    if not _quick(model):
        return
    groups = _groups(model, _SHORT_PROMPTS, _SHORT_COMPLETIONS)
    with torch.no_grad(), evaluation_mode(policy):
        found = policy(pack(groups).to(model.device)).logprobs
        with _plain_attention(model):
            plain = torch.cat(list(_sequences(model, groups)))
    other = "Set policy.rows=separate." if policy.rows == "packed" else "Choose a model such as Qwen3 or Llama."
    what = f"{policy.rows} rows give other log-probabilities than the model gives for one sequence at a time"
    _check(model, _largest(found, plain), what, other)


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
    prompts = [_ids(length, _vocabulary(model), seed) for seed, length in enumerate(_SHORT_PROMPTS)]
    gap = _engine_gap(engine, model, prompts, SamplingParams(n=1, temperature=0.0, max_new_tokens=tokens))
    what = "the rollout engine reports other log-probabilities than the model has"
    _check(model, gap, what, "Set rollout=vllm, or rollout.cache to padded, even or none.")


def _check(model: PreTrainedModel, gap: float, what: str, advice: str) -> None:
    limit = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    if math.isnan(gap) and (broken := [n for n, p in model.named_parameters() if not p.isfinite().all()]):
        raise ConfigError(
            f"policy: {len(broken)} tensors of '{model.name_or_path}' hold values that are not finite: {broken[0]} is "
            "the first. Take an earlier checkpoint, or download it again."
        )
    if not gap <= limit:
        raise ConfigError(
            f"policy: model type '{model.config.model_type}': {what}, by up to {gap:.2g} nats, expected at most "
            f"{limit:g} ({model.dtype}). {advice}"
        )
    log.debug("%s: %.1e nats", what, gap)


def _engine_gap(
    engine: RolloutEngine, model: PreTrainedModel, prompts: Sequence[Tensor], params: SamplingParams
) -> float:
    sampled: Sequence[Sequence[Completion]] = engine.generate(prompts, params, [0] * len(prompts))
    pairs = [(ids, one) for ids, completions in zip(prompts, sampled, strict=True) for one in completions]
    with torch.no_grad(), evaluation_mode(model), _plain_attention(model):
        plain = torch.cat([_plain(model, ids, one.token_ids) for ids, one in pairs])
    return _largest(torch.cat([one.logprobs for _, one in pairs]), plain)


def _scored(model: PreTrainedModel, logprobs: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """Log-probabilities, and the gradient of a sum in which each of them counts differently, by parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = logprobs()
    weights = torch.randn(len(found), generator=torch.Generator().manual_seed(0)).to(found)
    gradient = torch.autograd.grad((weights * found).sum(), parameters, allow_unused=True)
    return found.detach(), list(gradient)


def _in_a_row(policy: Policy, groups: Sequence[PromptGroup]) -> Tensor:
    return policy(pack(groups)).logprobs


def _relative(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Norm of the difference over the norm of the expected gradient, all parameters together."""
    zero = torch.zeros(())
    pairs = [(zero if a is None else a, zero if b is None else b) for a, b in zip(found, expected, strict=True)]
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((difference / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest difference; NaN where one of them is."""
    return float((found.detach().cpu().double() - expected.detach().cpu().double()).abs().max())


def _sequences(model: PreTrainedModel, groups: Sequence[PromptGroup]) -> Iterator[Tensor]:
    for group in groups:
        for completion in group.token_ids.split(group.lengths.tolist()):
            yield _plain(model, group.prompt_ids, completion)


def _plain(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Tensor:
    """Log-probability of each token of a completion, one sequence at a time, without a cache."""
    ids = torch.cat([prompt, completion]).to(model.device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(1, completion.to(model.device)[:, None])[:, 0]


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Transformers' eager attention, which leaves nothing out that layers ask for; the one before is put back."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


def _groups(model: PreTrainedModel, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> list[PromptGroup]:
    shapes = enumerate(zip(prompts, completions, strict=True))
    return [_group(prompt, lengths, _vocabulary(model), seed) for seed, (prompt, lengths) in shapes]


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
    text: Any = model.config.get_text_config(decoder=True)
    return int(text.vocab_size)


def _line(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def _quick(model: PreTrainedModel) -> bool:
    """Whether a few forwards take seconds."""
    size = model.num_parameters()
    if model.device.type == "cpu" and size > _LARGEST_ON_CPU:
        log.info("The policy of %.0f billion weights is not compared with its plain model on a CPU.", size / 1e9)
        return False
    return True
