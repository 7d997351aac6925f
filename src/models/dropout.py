"""Dropout that a model comes with: in `nn.Dropout` modules, in numbers like `self.attention_dropout`, or in its config.

Engines sample from the whole network; a forward that drops units of it has the log-probabilities of another policy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.nn.modules.dropout import _DropoutNd

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_OF_OTHER_HEADS = ("classifier", "summary")
"""Keys of a config that a causal language model does not read."""


def dropout_of(model: PreTrainedModel) -> dict[str, float]:
    """Probabilities above 0 by name: `policy.lora.dropout`, or as the model's modules and config.json call them."""
    return {name: getattr(owner, key) for owner, key, name in _places(model)}


def switch_off(model: PreTrainedModel) -> None:
    """Set them all to 0, whatever mode the model is in. Its config then says 0 too, since some models read it there."""
    for owner, key, _ in list(_places(model)):
        setattr(owner, key, 0.0)


def tell_dropout(found: Mapping[str, float], *, used: bool, samples: bool) -> None:
    """Log what becomes of a model's dropout.

    Args:
        found: `dropout_of` the model as it came.
        used: `policy.dropout`.
        samples: whether the run trains on what an engine samples.
    """
    shown = ", ".join(f"{name}={probability:g}" for name, probability in found.items())
    if found and not used:
        log.info("Dropout is off (%s), as it is in sampling; policy.dropout=true has it in updates.", shown)
    elif found and samples:
        log.warning(
            "policy.dropout=true (%s): updates drop units that the sampler keeps, so the log-probabilities before an "
            "update are those of a random part of the network, and the ratios are noisy. train/sampler_gap shows how "
            "far apart the two are, in nats a token; without dropout it is about 5e-7 in float32.",
            shown,
        )


def _places(model: PreTrainedModel) -> Iterator[tuple[Any, str, str]]:
    """(owner, its attribute, name) of each probability above 0."""
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield module, "p", "policy.lora.dropout" if "lora_dropout" in path else path.rpartition(".")[2]
        yield from ((module, name, name) for name in _named(module))
    for config in (model.config, model.config.get_text_config()):
        yield from ((config, name, name) for name in _named(config) if not name.startswith(_OF_OTHER_HEADS))


def _named(owner: object) -> list[str]:
    return [name for name, value in vars(owner).items() if "drop" in name and isinstance(value, float) and value > 0]
