"""What a causal LM is made of: its decoder, the decoder's layers, its head, and what it does to the head's products."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from src.errors import ConfigError
from src.models.head.head import LogitMap

_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1, "logits_mup_width_multiplier": -1}
"""Keys of a config that scale logits, as factors (1) or divisors (-1)."""
_OTHERWISE = {("hyperclovax", "logits_scaling"): 1, ("mpt", "logit_scale"): 0}
"""Types that use a key in another way: this one multiplies, that one does not read it."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder that reads text: the model without its head, and without encoders of images or sound."""
    decoder = model.get_decoder()
    return cast(nn.Module, model.model if decoder is model else decoder)


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's layers, the units to shard and to count, in order; several stacks end to end.

    Raises:
        ConfigError: it has no list of layers.
    """
    stacks: list[nn.ModuleList] = []

    def find(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList) and any(True for _ in child.parameters()):
                stacks.append(child)
            else:
                find(child)

    find(decoder)
    if not stacks:
        raise ConfigError(f"policy: {type(decoder).__name__}: expected a list of decoder layers, found none.")
    longest = max(len(stack) for stack in stacks)
    return [layer for stack in stacks if len(stack) == longest for layer in stack]


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The output head.

    Raises:
        ConfigError: it is more than one linear layer, as in models of the BERT family.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or decoder_of(model) is head or all(head is not one for one in model.children()):
        found = type(head).__name__ if not isinstance(head, nn.Linear) else "one that is part of more"
        raise ConfigError(
            f"policy: model type '{model.config.model_type}': expected a decoder and a linear output head behind it, "
            f"found {found}. Choose a model such as Qwen3 or Llama."
        )
    return head


def logit_map_of(model: PreTrainedModel) -> LogitMap:
    """What the model does to the products of its head, as its config says; `config.guard` compares the numbers."""
    text: Any = model.config.get_text_config(decoder=True)
    scale = 1.0
    for key, power in _SCALES.items():
        scale *= (getattr(text, key, None) or 1.0) ** _OTHERWISE.get((text.model_type, key), power)
    caps = [cap for key in _CAPS if (cap := getattr(text, key, None))]
    return LogitMap(float(scale), float(caps[0]) if caps else None)


def positions_of(config: PretrainedConfig) -> int | None:
    """Most tokens of a sequence; None: any number.

    LongRoPE chooses other frequencies for sequences beyond its original length, so that the tokens of one that grows
    past it would be sampled from one function and trained in another: it ends there.
    """
    text: Any = config.get_text_config(decoder=True)
    limits = [getattr(text, "max_position_embeddings", None)]
    rope = getattr(text, "rope_parameters", None) or {}
    for settings in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if settings.get("rope_type") == "longrope":
            key = "original_max_position_embeddings"
            limits += [settings.get(key), getattr(text, key, None)]
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def own_attention(model: PreTrainedModel) -> str:
    """Transformers' attention that computes all that the model's layers ask for: SDPA knows no soft-capped scores."""
    text = model.config.get_text_config(decoder=True)
    capped = getattr(text, "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and not capped else "eager"


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Choose the attention function of all layers.

    Raises:
        ConfigError: the model does not let it be chosen.
    """
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ConfigError(
            f"policy: model type '{model.config.model_type}' does not accept attention '{name}': it does not use "
            "transformers' AttentionInterface. Set policy.rows=separate."
        )


def freeze_unused(model: PreTrainedModel) -> None:
    """Take the gradients from what no text goes through, such as an encoder of images."""
    used = {id(parameter) for part in (decoder_of(model), head_of(model)) for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)
