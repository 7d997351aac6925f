"""A policy's architecture without its weights: from a local folder, the hub's cache, this project's own files, the hub.

`architectures/` holds the config.json of the published experiments' models, so that memory can be planned offline.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from src.errors import ConfigError, FileError, is_out_of_memory
from src.models.loading.files import check_complete, folder_of_gguf, model_folder
from src.models.loading.lora import LoraSettings, add_lora
from src.models.loading.policy_config import PolicyConfig
from src.models.structure import decoder_of, freeze_unused, head_of, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN = Path(__file__).parents[1] / "architectures"
"""`<name>.json` is the config.json of the hub model `<owner>/<name>`."""


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """How many weights a model has and where; tied weights count once.

    Attributes:
        total: all of them, adapters included.
        trained: those that get gradients: of a model that reads images too, the text decoder's.
        layers: decoder layers.
        layer: in the largest decoder layer.
        layer_trained: in the one with most of them, with gradients.
        head: of the output head alone.
        tied: whether the head is the embedding matrix.
        head_trained: whether the head gets gradients.
        embedding_trained: whether the embeddings do.
        largest: weights of the largest tensor.
        largest_trained: weights of the largest tensor that gets gradients.
        missing: weights that the decoder layers lack to be all as large as the largest.
        missing_trained: likewise, with gradients.
    """

    total: int
    trained: int
    layers: int
    layer: int
    layer_trained: int
    head: int
    tied: bool
    head_trained: bool
    embedding_trained: bool
    largest: int
    largest_trained: int
    missing: int = 0
    missing_trained: int = 0

    @property
    def root(self) -> int:
        """Weights outside the decoder layers, which FSDP gathers as one."""
        return self.total - self.layers * self.layer + self.missing

    @property
    def root_trained(self) -> int:
        """Those of them with gradients."""
        return self.trained - self.layers * self.layer_trained + self.missing_trained


def load_architecture(config: PolicyConfig) -> PretrainedConfig:
    """The architecture that `load_model` would give weights to; reads no weights and needs a network last of all.

    A GGUF file that has not been converted yet is asked for its header.

    Raises:
        FileError: a folder, package or config.json that is not there.
        FileError: a hub id that is neither cached, nor known here, nor reachable.
        ConfigError: see `config_errors`.
    """
    with config_errors():
        return _load_architecture(config)


@contextmanager
def config_errors() -> Iterator[None]:
    """Around what reads a config.json or builds its model: its values may fail there in any way.

    Raises:
        ConfigError: in place of every error but those of files and memory.
    """
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise ConfigError(
                "policy.trust_remote_code=false: this model comes with Python code of its own, which would run here "
                "with your rights. Read it, then set policy.trust_remote_code=true; or choose a model that "
                "transformers knows."
            ) from error
        raise ConfigError(
            "policy: expected the config.json of a causal language model; transformers says "
            f"{type(error).__name__}: {reason[:300]}. Compare its values with the published ones."
        ) from error


def check_causal(architecture: PretrainedConfig) -> None:
    """Refuse a model that is none to sample from, as an encoder.

    Raises:
        ConfigError: names its type.
    """
    from transformers.models.auto import modeling_auto as auto

    known = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    own_code = getattr(architecture, "auto_map", None) or {}
    if not any(architecture.model_type in names for names in known) and "AutoModelForCausalLM" not in own_code:
        raise ConfigError(
            f"policy: expected the config.json of a causal language model, found model type '{architecture.model_type}'"
            f" ({', '.join(architecture.architectures or ()) or 'no architectures'}). Choose one of docs/models.md."
        )


def _load_architecture(config: PolicyConfig) -> PretrainedConfig:
    trust = config.trust_remote_code
    folder = model_folder(config)
    if folder is not None:
        if (folder / "config.json").is_file():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        if config.gguf_file is None or not (folder / config.gguf_file).is_file():
            check_complete(folder, config)
            raise FileError(f"policy: '{folder}' has neither config.json nor the GGUF file of policy.gguf_file.")
        cache = None if config.cache_dir is None else Path(config.cache_dir)
        converted = folder_of_gguf(str(folder), config.gguf_file, cache)
        if (converted / "config.json").is_file():  # the header takes seconds
            return AutoConfig.from_pretrained(converted)
        with silent():  # dequantising, which does not happen here, would be announced
            return AutoConfig.from_pretrained(folder, gguf_file=config.gguf_file)
    hub_id = str(config.hub_id)
    try:
        return AutoConfig.from_pretrained(
            hub_id, trust_remote_code=trust, gguf_file=config.gguf_file, local_files_only=True
        )
    except OSError:
        known = KNOWN / f"{hub_id.rpartition('/')[2]}.json"
        if known.is_file():
            return AutoConfig.from_pretrained(known)
    try:
        return AutoConfig.from_pretrained(hub_id, trust_remote_code=trust, gguf_file=config.gguf_file)
    except OSError as error:
        raise FileError(
            f"policy.hub_id: the architecture of '{hub_id}' is not cached, not among "
            f"{sorted(path.stem for path in KNOWN.glob('*.json'))}, and the hub cannot be asked: "
            f"{str(error).splitlines()[0]} Set policy.path to a folder with its config.json."
        ) from error


def empty_model(
    architecture: PretrainedConfig, dtype: torch.dtype, lora: LoraSettings | None = None, *, trust: bool = False
) -> PreTrainedModel:
    """A model whose parameters are on the meta device, tied, with adapters.

    Its buffers (rotary frequencies), which no checkpoint may hold, are computed.

    Args:
        architecture: stays as it is.
        dtype: of the weights.
        lora: adapters, whose weights are float32.
        trust: run Python code that comes with the model.

    Raises:
        ConfigError: see `config_errors`.
    """
    from accelerate import init_empty_weights  # takes seconds, which no check of an architecture waits for

    with init_empty_weights(include_buffers=False), config_errors():
        model = model_class(architecture).from_config(copy.deepcopy(architecture), dtype=dtype, trust_remote_code=trust)
        if lora is not None:
            add_lora(model, lora)
    model.tie_weights()  # parameters were replaced as they were registered, which unties them
    return cast("PreTrainedModel", model)


def model_class(architecture: PretrainedConfig) -> Any:
    """The one of transformers' Auto classes that builds a policy.

    `AutoModelForCausalLM`, but for checkpoints that read images too and that it has no class for, or one of the text
    decoder alone. The decoder's weights have other names by itself than in the checkpoint, which engines go by.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    kind = architecture.model_type
    whole = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    unknown = kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if whole is not None and (unknown or whole in (architecture.architectures or ())):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def dtype_of(architecture: PretrainedConfig) -> torch.dtype:
    """The type of the checkpoint's weights, which a composite config may name for its decoder only."""
    found = architecture.dtype or architecture.get_text_config(decoder=True).dtype
    return cast("torch.dtype", found or torch.float32)


def count_parameters(model: PreTrainedModel) -> ParameterCounts:
    """Count a model's weights; those that text does not go through get no gradients from here on.

    Raises:
        ConfigError: see `layers_of` and `head_of`.
    """
    freeze_unused(model)
    layers = layers_of(decoder_of(model))
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    layer, missing = _largest([list(one.parameters()) for one in layers])
    layer_trained, missing_trained = _largest([[p for p in one.parameters() if p.requires_grad] for one in layers])
    head = head_of(model).weight
    embedding = cast(nn.Parameter, model.get_input_embeddings().weight)
    return ParameterCounts(
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        layers=len(layers),
        layer=layer,
        layer_trained=layer_trained,
        head=head.numel(),
        tied=head is embedding,
        head_trained=head.requires_grad,
        embedding_trained=embedding.requires_grad,
        largest=max(p.numel() for p in parameters),
        largest_trained=max((p.numel() for p in trained), default=0),
        missing=missing,
        missing_trained=missing_trained,
    )


def _largest(layers: list[list[nn.Parameter]]) -> tuple[int, int]:
    """Weights of the largest layer, and what all others lack of it; weights that layers share are in one of them."""
    together = {id(p): p for layer in layers for p in layer}
    largest = max(sum(p.numel() for p in layer) for layer in layers)
    return largest, len(layers) * largest - sum(p.numel() for p in together.values())


@contextmanager
def silent() -> Iterator[None]:
    """Without transformers' warnings."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
