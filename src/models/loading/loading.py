"""Policies from a hub id, a local folder, a GGUF file or random weights.

Weights come from safetensors, or from pickles read with `weights_only=True`; Python code that comes with a model runs
only where `policy.trust_remote_code` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.data.templates.chat_template import turn_end
from src.data.templates.native import call_end
from src.errors import ConfigError, is_out_of_memory
from src.models.loading.architecture import check_causal, config_errors, dtype_of, empty_model, model_class
from src.models.loading.files import check_tokenizer_files, check_weight_files, hub_errors, locate
from src.models.loading.lora import add_lora
from src.models.loading.policy_config import PolicyConfig
from src.models.loading.quantization import check_quantization, dequantising, forget_quantization, four_bit
from src.models.loading.weight_source import WeightSource, check_surplus, check_tie, some
from src.models.policy import Policy
from src.models.structure import freeze_unused, head_of


class LoadedPolicy(NamedTuple):
    """A policy with what generation needs to know about it.

    Attributes:
        policy: the model, ready to score packed rows.
        tokenizer: with a chat template, an end-of-sequence token and a padding token.
        stop_token_ids: ids that end a completion, the tokenizer's end-of-sequence token first.
        weights: where those of a policy on the meta device are; None: it has them.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    weights: WeightSource | None = None


def load_policy(
    config: PolicyConfig,
    *,
    rows: Literal["packed", "separate"] = "packed",
    on_meta: bool = False,
    template: Mapping[str, Any] | None = None,
) -> LoadedPolicy:
    """Load model and tokenizer.

    Args:
        config: where from.
        rows: see `Policy`, where `config.rows` is `auto`.
        on_meta: leave the policy on the meta device, for `models.loading.sharding` to fill shard by shard.
        template: arguments of the chat template.

    Raises:
        FileError: a folder, package or file that is not there, or a hub that cannot be reached or lacks the model.
        ConfigError: a damaged file, weights that do not fit the architecture or are quantised in a way that is not
            read, no chat template, no end-of-sequence token, or a model that its rows are wrong for.
    """
    tokenizer = load_tokenizer(config)
    model = load_model(config, on_meta=on_meta)
    policy = Policy(
        model,
        rows=rows if config.rows == "auto" else config.rows,
        gradient_checkpointing=config.gradient_checkpointing,
        compile_layers=config.compile_layers,
        head_chunk=config.head_chunk,
        dropout=config.dropout,
        router_loss=config.router_loss,
    )
    weights: WeightSource | None = None
    if on_meta:
        with hub_errors(config):
            weights = WeightSource.random()
            if config.weights == "pretrained":
                weights = WeightSource.of(locate(config)).made_for(model)
    return LoadedPolicy(policy, tokenizer, stop_token_ids(model, tokenizer, template), weights)


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer; without a padding token it pads with its end-of-sequence token. Raises as `load_policy`."""
    source = locate(config)
    check_tokenizer_files(Path(source))
    with hub_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"policy '{source}': the tokenizer has no chat template, so prompts cannot be rendered. Put "
            "chat_template.jinja into a local folder of the model and set policy.path, or choose an instruction-tuned "
            "model."
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"policy '{source}': the tokenizer has no end-of-sequence token to end responses with. Name one "
            "as eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(config: PolicyConfig, *, on_meta: bool = False) -> PreTrainedModel:
    """Load the model, with adapters if the config has any. Raises as `load_policy`.

    Args:
        config: where from.
        on_meta: leave its parameters on the meta device.
    """
    source, trust = locate(config), config.trust_remote_code
    pretrained = config.weights == "pretrained"
    if pretrained:
        check_weight_files(Path(source))
    with config_errors(), hub_errors(config):
        architecture = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        check_causal(architecture)
        if pretrained:
            check_quantization(architecture, source, sharded=on_meta)
        how: dict[str, Any] = dequantising(architecture) if pretrained else {}
        if config.four_bit:
            how |= four_bit(_dtype(architecture, config), sharded=on_meta)
        if pretrained and not on_meta:
            model = _pretrained(source, architecture, config, how)
        else:
            forget_quantization(architecture)
            dtype = _dtype(architecture, config)
            if on_meta:
                model = empty_model(architecture, dtype, config.lora, trust=trust)
                with suppress(OSError):  # a model folder need not have one
                    model.generation_config = GenerationConfig.from_pretrained(source)
                freeze_unused(model)
                return model
            model = model_class(architecture).from_config(architecture, dtype=dtype, trust_remote_code=trust)
    if config.lora is not None:
        add_lora(model, config.lora)
    freeze_unused(model)
    return model


def _dtype(architecture: PretrainedConfig, config: PolicyConfig) -> torch.dtype:
    return dtype_of(architecture) if config.dtype == "auto" else cast(torch.dtype, getattr(torch, config.dtype))


def _pretrained(
    source: str, architecture: PretrainedConfig, config: PolicyConfig, how: Mapping[str, Any]
) -> PreTrainedModel:
    """The model with all of its weights: transformers draws those that no file has at random, and goes on."""
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        loaded: Any = model_class(architecture).from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            weights_only=True,
            output_loading_info=True,
            **how,
        )
        model, found = loaded
    except RuntimeError as error:  # another shape
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(f"policy: the weights of '{source}' do not fit its config.json: {reason}") from error
    surplus = sorted(found["unexpected_keys"])
    if missing := sorted(found["missing_keys"]):
        others = f", and have {len(surplus)} others: {some(surplus)}" if surplus else ""
        raise ConfigError(
            f"policy: the weights of '{source}' lack {len(missing)} of the model's tensors: {some(missing)}{others}. "
            "Is config.json that of these weights, and is every file there?"
        )
    check_surplus(model, surplus, source)
    if getattr(model.config, "tie_word_embeddings", False):
        check_tie(head_of(model).weight is model.get_input_embeddings().weight, source)
    if how and not config.four_bit:
        _settle(model, dtype)
    return cast(PreTrainedModel, model)


def _settle(model: PreTrainedModel, dtype: torch.dtype | str) -> None:
    """Make a dequantised model like any other.

    transformers leaves experts that were MXFP4 in bfloat16, whatever type was asked for, and would save the model under
    the names that quantised weights have: those of all layers' experts under one.
    """
    if dtype == torch.float32:
        model.float()
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions


def stop_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's end of sequence, the generation config's, the chat template's.

    Raises:
        ConfigError: the chat template ends answers with what stops nothing, or the generation config gives no ids.
    """
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])]
    ids += [turn_end(tokenizer, template)[1], call_end(tokenizer, template)]
    if wrong := [token for token in ids if token is not None and not isinstance(token, int)]:
        raise ConfigError(
            f"policy: eos_token_id in generation_config.json of '{tokenizer.name_or_path}': expected token ids, found "
            f"{wrong[0]!r}. Write the id in place of the text."
        )
    return tuple(dict.fromkeys(token for token in ids if token is not None))
