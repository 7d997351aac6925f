"""Rollout engine in plain PyTorch for any Hugging Face causal LM.

Where attention is all that a model remembers by, prompts are prefilled once, end to end without padding; their
completions decode together and share the prompt's keys (`prefix_cache`); finished completions leave the batch and
waiting prompts enter (`batching`). Other models sample on their own cache (`own_cache`). The model may be the one that
is being trained: it is switched to evaluation mode and to the rollout's attention function for the call, and restored
after. The trainer's autocast is switched off meanwhile, where the weights have the type that it would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from src.errors import ConfigError
from src.models.loading.architecture import empty_model
from src.models.loading.quantization import is_packed
from src.models.loading.weight_source import fill_empty
from src.models.structure import own_attention, positions_of, set_attention
from src.rollout.engine import Cache, Completion, EngineSource, SamplingParams, check_prompts, needs_copy
from src.rollout.native.batching import ContinuousBatch
from src.rollout.native.decoding import PREFIX_ATTENTION, Forward, forward_for
from src.rollout.native.own_cache import sample_with_own_cache
from src.rollout.native.prefix_cache import PrefixCache
from src.rollout.native.sampling import SampledTokens


def native_engine(
    source: EngineSource,
    *,
    owns_model: bool | None = None,
    device: str | torch.device | None = None,
    max_sequences: int = 256,
    max_batch_tokens: int = 131_072,
    cache: Cache | Literal["auto"] = "auto",
) -> NativeEngine:
    """The engine for a policy: with the training module itself, or with a whole copy of it (`needs_copy`).

    Args:
        source: what it samples from.
        owns_model: True: a copy of the model, in `source.dtype`, on `device`; False: the training module, which under
            a mixed precision computes as the trainer does, and slowly; null: see `needs_copy`.
        device: of the copy; null: the process's accelerator, or the CPU.
        max_sequences: see `NativeEngine`.
        max_batch_tokens: see `NativeEngine`.
        cache: see `NativeEngine`; `auto`: the one that `config.guard` finds right for the model.

    Raises:
        ValueError: the training module is wanted, and it is sharded.
        ConfigError: no `cache` is right for the model.
    """
    if owns_model is False and not source.shared:
        raise ConfigError(
            "rollout.owns_model=false: expected true or null with a sharded policy, whose ranks would wait for each "
            "other at every token. Set rollout.owns_model=null."
        )
    if cache == "auto":
        if source.cache is None:
            raise ConfigError(
                f"rollout: the native engine's samples of model type '{source.model.config.model_type}' are not the "
                "model's own, whatever rollout.cache is. Set rollout=vllm."
            )
        cache = source.cache
    owns = owns_model
    if owns is None:
        stored = _plain_type(source.model) if source.mixed else source.dtype
        owns = needs_copy(sharded=not source.shared, stored=stored, forwards=source.dtype)
    types = {weight.dtype for weight in source.model.parameters() if weight.is_floating_point()}
    model = partial(empty_copy, source, device) if owns else source.model
    return NativeEngine(
        model,
        owns_model=owns,
        keeps_autocast=source.mixed and not owns and types != {source.dtype},
        max_sequences=max_sequences,
        max_batch_tokens=max_batch_tokens,
        cache=cache,
    )


class NativeEngine:
    """Samples with the model in hand, in this process.

    Args:
        model: the causal LM, or a callable that returns it, called at first use (for a model that does not exist yet
            when the engine is configured).
        owns_model: False: the model is the training module itself, `update_weights` copies nothing. True: the model is
            a separate copy, which `update_weights` writes into.
        keeps_autocast: sample under the caller's autocast, if there is one; False: without.
        max_sequences: most completions that decode together.
        max_batch_tokens: most tokens that the cache may hold, counted with every completion at its longest. One prompt
            with its completions is always let in.
        cache: see `rollout.engine.Cache`.

    Attributes:
        cache: the same.
        watch: None, or called with the tokens int64 [R] that decode steps take, as soon as they are sampled: all of a
            completion but its last. For whoever shows an answer as it grows.
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        *,
        owns_model: bool = False,
        keeps_autocast: bool = False,
        max_sequences: int = 256,
        max_batch_tokens: int = 131_072,
        cache: Cache = "shared",
    ) -> None:
        if cache not in get_args(Cache):
            raise ConfigError(f"rollout.cache: expected 'auto' or one of {get_args(Cache)}, found '{cache}'.")
        for name, value in (("max_sequences", max_sequences), ("max_batch_tokens", max_batch_tokens)):
            if value < 1:
                raise ConfigError(f"rollout.{name}: expected at least 1, found {value}.")
        self._source = model
        self._model: PreTrainedModel | None = None
        self._keeps_autocast = keeps_autocast
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self.cache = cache
        self.copies_weights, self.ranks_per_engine = owns_model, 1
        self.weights_version = -1 if owns_model else 0
        self.watch: Callable[[Tensor], None] | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The model that samples."""
        if self._model is None:
            # a module is callable too; peft's wrapper is a module but no PreTrainedModel
            given = self._source if isinstance(self._source, nn.Module) else self._source()
            self._model = cast(PreTrainedModel, given)
        return self._model

    @property
    def context(self) -> int | None:
        """The model's positions."""
        return positions_of(self.model.config)

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Sample `params.n` completions for each prompt; see `RolloutEngine.generate`.

        Greedy completions of a prompt are equal, so one is decoded and listed n times.

        Prompts may be on any device; what comes back is on the CPU.

        Raises:
            ValueError: an empty prompt, one too long for the model's positions, or a wrong number of seeds.
        """
        model = self.model
        _check(model, prompts, params, seeds)
        if not prompts:
            return []
        decoded = replace(params, n=1) if params.temperature == 0 else params
        limits = {"max_sequences": self._max_sequences, "max_batch_tokens": self._max_batch_tokens}
        if self.cache != "shared":
            with torch.no_grad(), self._precision(model), _sampling_mode(model, own_attention(model)):
                settings: dict[str, Any] = {**limits, "cache": self.cache, "watch": self.watch}
                sampled = sample_with_own_cache(model, prompts, decoded, seeds, **settings)
            return [group * (params.n // decoded.n) for group in self._collect(sampled, decoded)]
        with torch.no_grad(), self._precision(model), _sampling_mode(model, PREFIX_ATTENTION):
            forward = forward_for(model, max(map(len, prompts)) + decoded.max_new_tokens)
            batch = ContinuousBatch(
                model,
                self._watched(forward),
                prompts,
                decoded,
                seeds,
                **limits,
            )
            groups = self._collect(batch.run(), decoded)
        return [group * (params.n // decoded.n) for group in groups]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights and stamp what is sampled next with `version`.

        With a shared model the weights are there already: the version is stamped and `named_tensors` is not consumed.
        An engine that owns its model copies in place.

        Raises:
            ValueError: see `copy_weights`. The version stays as it was; some weights may have been written.
        """
        if self.copies_weights:
            copy_weights(self.model, named_tensors)
        self.weights_version = version

    def release_memory(self) -> None:
        """Nothing to spare: the cache lives as long as `generate`."""

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _precision(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        return nullcontext() if self._keeps_autocast else torch.autocast(model.device.type, enabled=False)

    def _watched(self, forward: Forward) -> Forward:
        if (watch := self.watch) is None:
            return forward

        def watched(tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
            watch(tokens)
            return forward(tokens, positions, cache)

        return watched

    def _collect(self, sampled: SampledTokens, params: SamplingParams) -> list[list[Completion]]:
        """Cut each row of ids [S, T] after its first stop token; consecutive n rows are one prompt's."""
        tokens, logprobs, entropies = sampled
        is_stop = torch.isin(tokens, torch.tensor(params.stop_token_ids, dtype=torch.long))
        stopped = is_stop.any(dim=-1)
        ends = torch.where(stopped, is_stop.int().argmax(dim=-1) + 1, tokens.shape[1]).tolist()
        completions = [
            Completion(
                token_ids=tokens[i, :end].clone(),
                logprobs=logprobs[i, :end].clone(),
                finish_reason="stop" if stop else "length",
                weights_version=self.weights_version,
                entropies=None if params.temperature == 0 else entropies[i, :end].clone(),
            )
            for i, (end, stop) in enumerate(zip(ends, stopped.tolist(), strict=True))
        ]
        return [completions[i : i + params.n] for i in range(0, len(completions), params.n)]


def _check(model: PreTrainedModel, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]) -> None:
    check_prompts(prompts, seeds)
    limit = positions_of(model.config)
    for i, prompt in enumerate(prompts):
        if limit is not None and len(prompt) + params.max_new_tokens > limit:
            raise ValueError(
                f"generate: prompt {i} has {len(prompt)} tokens; with max_new_tokens={params.max_new_tokens} it may "
                f"pass the model's max_position_embeddings={limit}. Lower sampling.max_new_tokens or drop long prompts."
            )


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; what was in training mode is again behind it, module by module."""
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _sampling_mode(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Evaluation mode, an attention function, and layers as they are without `policy.compile_layers`; put back."""
    before = model.config._attn_implementation
    try:
        if attention == PREFIX_ATTENTION:
            set_attention(model, attention)
        else:
            model.set_attn_implementation(attention)
        with evaluation_mode(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.set_attn_implementation(before)


def _plain_type(model: PreTrainedModel) -> torch.dtype | None:
    """Of its weights; None: they are packed in 4 bits."""
    return None if any(map(is_packed, model.parameters())) else model.dtype


def empty_copy(source: EngineSource, device: str | torch.device | None) -> PreTrainedModel:
    """The architecture on a device, its weights still to come; buffers (rotary frequencies) are computed."""
    architecture = AutoConfig.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
    model = empty_model(architecture, source.dtype, trust=source.trust_remote_code)
    where = device or torch.accelerator.current_accelerator() or "cpu"
    with torch.inference_mode(False):  # validation, where the first use may be, makes tensors that take no updates
        fill_empty(model, torch.device(where))
    return model.eval().requires_grad_(False)


def copy_weights(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write weights in place, one tensor at a time, cast to the model's type and device.

    Args:
        model: takes them.
        named_tensors: all of its state dict; a tied head under either of its names or both.

    Raises:
        ValueError: a name that the model lacks, a wrong shape, two values for tied weights, or weights that were not
            given.
    """
    state = model.state_dict()
    written: dict[int, str] = {}
    with torch.no_grad():
        for name, tensor in named_tensors:
            target = state.get(name)
            if target is None:
                raise ValueError(
                    f"update_weights: unexpected name '{name}'; {type(model).__name__} has no such weight."
                )
            if target.shape != tensor.shape:
                raise ValueError(
                    f"update_weights: '{name}': expected shape {tuple(target.shape)}, found {tuple(tensor.shape)}."
                )
            tied = written.get(target.data_ptr())
            if tied is None:
                target.copy_(tensor)
                written[target.data_ptr()] = name
            elif not torch.equal(target, tensor.to(target)):
                raise ValueError(f"update_weights: '{name}' and '{tied}' are tied in the engine, but differ here.")
    missing = [name for name, target in state.items() if target.data_ptr() not in written]
    if missing:
        raise ValueError(
            f"update_weights: expected all {len(state)} weights, {len(missing)} were missing: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}."
        )
