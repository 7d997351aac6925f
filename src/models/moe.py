"""Mixtures of experts: their routers, in which precision these choose, and a loss that keeps experts in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from src.errors import ConfigError
from src.models.structure import decoder_of, layers_of

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")


def routers_of(decoder: nn.Module) -> list[nn.Module]:
    """The routers of a decoder, as transformers records their logits; none in a dense model."""
    recorded: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits", ())
    kinds = [one for one in (recorded if isinstance(recorded, list) else [recorded]) if hasattr(one, "target_class")]
    return [
        module
        for name, module in decoder.named_modules()
        if any(isinstance(module, kind.target_class) and (kind.layer_name or "") in name for kind in kinds)
    ]


def route_in_float32(decoder: nn.Module) -> None:
    """Take routers out of autocast: which experts are the best few hangs on digits that bfloat16 does not have.

    Weights that are bfloat16 themselves, as those that FSDP gathers under a bf16 precision, stay so.
    """
    for router in routers_of(decoder):
        if "forward" not in vars(router):
            router.forward = partial(_forward, router, router.forward)


def check_router_loss(model: PreTrainedModel, weight: float) -> None:
    """Refuse a weight for what a model does not have.

    Raises:
        ConfigError: the model is no mixture of experts, or its config does not say how many a token goes to.
    """
    if weight and not (routers_of(decoder_of(model)) and experts_chosen(model.config)):
        raise ConfigError(
            f"policy.router_loss={weight}: expected a mixture of experts, found none in model type "
            f"'{model.config.model_type}'. Set it to 0."
        )


def _forward(router: nn.Module, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The router's forward on inputs of its weights' type; what it gives for experts' outputs has the inputs' type."""
    device = hidden_states.device.type
    if not torch.is_autocast_enabled(device):
        return forward(hidden_states, *args, **kwargs)
    wide = next(router.parameters()).dtype
    with torch.autocast(device, enabled=False):
        found = forward(hidden_states.to(wide), *args, **kwargs)
    if not isinstance(found, tuple):
        return found
    return tuple(x.to(hidden_states.dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in found)


def experts_chosen(architecture: PretrainedConfig) -> int:
    """How many experts a token goes to, as a model's config says; 0: it is no mixture."""
    text = architecture.get_text_config(decoder=True)
    return next((int(found) for key in _CHOSEN if (found := getattr(text, key, None))), 0)


@contextmanager
def choices_recorded(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """The experts that tokens go to, filled in by forwards: int64 [T, k] of each layer with experts, by its index.

    The T inputs of the last forward, padding included. Empty in a dense model, and where a layer sends its tokens to
    experts without transformers' interface for them (Llama 4).
    """
    chosen: dict[int, Tensor] = {}

    def record(index: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        chosen[index] = given[1].detach()

    experts = [
        (index, module)
        for index, layer in enumerate(layers_of(decoder_of(model)))
        for module in layer.modules()
        if hasattr(module, "_apply_gate")  # set by that interface
    ]
    handles = [module.register_forward_pre_hook(partial(record, index)) for index, module in experts]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def share_of_equal_choices(chosen: Mapping[int, Tensor], other: Tensor) -> float:
    """Of the experts that `other` chose, the share that `chosen` holds too.

    Args:
        chosen: int64 [T, k] of each layer with experts, by its index; at least one.
        other: integers [S, L, k] of all L layers and the first S <= T tokens; those of a layer without experts say
            nothing.
    """
    theirs = other.long()
    shares = [
        (theirs[:, layer, :, None].to(mine.device) == mine[: len(theirs), None, :]).any(-1).double().mean()
        for layer, mine in chosen.items()
    ]
    return float(torch.stack(shares).mean())


def balance_loss(
    router_logits: tuple[Tensor, ...] | None, model: PreTrainedModel, real: Tensor | None = None
) -> Tensor | float:
    """E sum_e f_e P_e over E experts: as many as a token goes to where they are used alike, more where few do the work.

    f_e is the share of tokens that choose expert e, P_e its mean probability, over all layers together (Switch
    Transformer, arXiv 2101.03961, eq. 4 to 6, as transformers computes it).

    Args:
        router_logits: [T, E] of each layer; None: the loss is 0.
        model: says how many experts a token goes to.
        real: bool [T], which tokens are no padding; None: all.
    """
    if not router_logits:
        return 0.0
    given: Any = router_logits
    mask = None if real is None else real[None]
    return cast(Tensor, load_balancing_loss_func(given, given[0].shape[-1], experts_chosen(model.config), mask))
