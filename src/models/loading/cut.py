"""An architecture in small: one layer of each kind, few experts, hardly any vocabulary, short windows.

What a model computes wrongly it computes wrongly in small too, in a second and without its weights.
"""

from __future__ import annotations

import copy

import torch
from transformers import PretrainedConfig, PreTrainedModel

from src.models.loading.architecture import model_class
from src.models.loading.quantization import forget_quantization

WINDOW = 16
"""Tokens that a layer with a window sees."""
VOCABULARY = 128

_LARGEST = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "window_size"), WINDOW),
    **dict.fromkeys(("sliding_window_size", "local_attention", "keep_window_size"), WINDOW),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 128),
    **dict.fromkeys(("intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "dense_intermediate_size"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_dense_layers", "index_topk"), 1),
    "index_topk": 4,
}
"""Largest value of a field of that name, in configs that have it."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_MOST_LAYERS = 10
_PERIODS = ("period", "interval", "pattern", "every_n_layers", "offset", "step")


def cut_config(architecture: PretrainedConfig) -> PretrainedConfig:
    """The architecture in small; what is not known to be safe to change stays.

    Args:
        architecture: stays as it is.
    """
    small = copy.deepcopy(architecture)
    forget_quantization(small)
    text = small.get_text_config(decoder=True)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in {id(one): one for one in (small, text)}.values():
            if getattr(config, key, None) is not None:
                setattr(config, key, 0)
    for key, largest in _LARGEST.items():
        found = vars(text).get(key)
        if isinstance(found, int) and found > largest:
            setattr(text, key, largest)
        elif isinstance(found, list | tuple):
            setattr(text, key, [min(entry, largest) for entry in found])
    _cut_layers(text)
    for part in small.sub_configs:
        encoder = getattr(small, part, None)
        if isinstance(encoder, PretrainedConfig) and encoder is not text:
            for key in (*_LAYERS, "depth"):
                if isinstance(vars(encoder).get(key), int):
                    setattr(encoder, key, 1)
    return small


def _cut_layers(text: PretrainedConfig) -> None:
    """One layer of each kind in place, in their order; where only a rule tells the kinds, as many as it takes."""
    key = next((name for name in _LAYERS if isinstance(vars(text).get(name), int)), None)
    if key is None:
        return
    count = getattr(text, key)
    lists = {
        name: value for name, value in vars(text).items() if isinstance(value, list | tuple) and len(value) == count
    }
    shared = getattr(text, "num_kv_shared_layers", 0) or 0
    if lists:
        own = {int(index): fields for index, fields in (text.to_dict().get("per_layer_config") or {}).items()}
        kinds = [
            (index >= count - shared, repr(own.get(index)), *(repr(value[index]) for value in lists.values()))
            for index in range(count)
        ]
        kept = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
        kept = kept if len(kept) > 1 else list(range(min(2, count)))
        for name, value in lists.items():
            setattr(text, name, [value[index] for index in kept])
        setattr(text, key, len(kept))
        if own:
            text.per_layer_config = {index: own[old] for index, old in enumerate(kept) if old in own}
        if shared:
            text.num_kv_shared_layers = sum(index >= count - shared for index in kept)
        return
    rules = [v for k, v in vars(text).items() if isinstance(v, int) and v > 1 and any(word in k for word in _PERIODS)]
    setattr(text, key, min(count, max([2, *(rule + 1 for rule in rules if rule < _MOST_LAYERS)])))


def cut_model(architecture: PretrainedConfig, *, trust: bool = False) -> PreTrainedModel:
    """A float32 model of the architecture in small, with random weights that make every part count.

    Args:
        architecture: of the model.
        trust: run Python code that comes with it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(architecture).from_config(
            cut_config(architecture), dtype=torch.float32, trust_remote_code=trust
        )
    draw_weights(model)
    return model.eval()


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Random weights from a generator of their own: matrices that keep the size of what they multiply, vectors moved.

    Initial weights of 0.02 leave attention almost even, and a mask that is wrong would hardly show. Biases, decays and
    sinks move by 1, past the clamps that some kernels lack; norms by 0.1, or rounding would be multiplied.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * min(0.12, parameter.shape[-1] ** -0.5))
        else:
            parameter.add_(noise if not name.endswith("weight") else 0.1 * noise)
