"""Every causal-LM type that transformers knows, small enough to build and run in a second, with random weights.

A small config starts from the default config of its type: sizes are cut down, and of the layers the first of each kind
stays, so that a hybrid keeps all it mixes. Tables below hold what the defaults do not say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
WINDOW = 16
"""Of sliding windows, and the length of attention chunks."""
POSITIONS = 256

UNBUILT: dict[str, str] = {
    "gemma4_assistant": "drafts for another model: its forward needs that model's hidden states and keys",
    "gemma4_unified_assistant": "drafts for another model: its forward needs that model's hidden states and keys",
    "musicgen": "AutoModelForCausalLM hands the whole config to the decoder alone, which cannot read it",
    "musicgen_melody": "AutoModelForCausalLM hands the whole config to the decoder alone, which cannot read it",
}
"""Why a type cannot be built from a small config."""

KINDS: tuple[str, ...] = tuple(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in UNBUILT)

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"

# The largest value of a field of that name; smaller defaults stay.
_SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (VOCABULARY, "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
        (64, "hidden_size n_embd d_model dim emb_dim embedding_dim word_embed_proj_dim embedding_size lru_width"),
        (64, "input_embedding_size output_embedding_size attention_hidden_size hidden_size_global"),
        (64, "pronunciation_embed_dim shape_embed_dim backbone_hidden_size"),
        (96, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner ffn_hidden_size"),
        (96, "dense_intermediate_size feed_forward_size intermediate_size_mlp mlp_dim"),
        (32, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
        (32, "moe_shared_expert_intermediate_size"),
        (4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
        (4, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads"),
        (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads"),
        (16, "head_dim kv_channels v_head_dim dim_head d_head attention_head_size swa_head_dim query_pre_attn_scalar"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num"),
        (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k num_selected_experts moe_top_k"),
        (1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts"),
        (1, "first_k_dense_replace num_dense_layers"),
        (16, "q_lora_rank kv_lora_rank o_lora_rank laurel_rank hc_lowrank adapter_rank router_hidden_size"),
        (8, "qk_rope_head_dim qk_nope_head_dim rotary_dim hidden_size_per_layer_input gated_norm_rank d_rel"),
        (WINDOW, "sliding_window attention_window_size sliding_window_size local_attention window_size"),
        (WINDOW, "attention_chunk_size keep_window_size block_size local_attn_chunk_length lsh_attn_chunk_length"),
        (WINDOW, "chunk_size mamba_chunk_size index_topk"),
        (8, "index_head_dim"),
        (16, "index_n_heads"),  # with few, scores of keys tie at zero, and which are chosen depends on the length
        (2, "linear_num_key_heads n_groups o_groups"),
        (4, "linear_num_value_heads linear_num_heads"),
        (16, "linear_key_head_dim linear_value_head_dim linear_head_dim"),
        (16, "state_size ssm_state_size mamba_d_state time_step_rank mamba_dt_rank mamba_d_head mamba_head_dim"),
        (8, "mamba_n_heads mamba_num_heads"),
        (POSITIONS, "max_position_embeddings n_positions max_seq_len n_ctx max_target_positions context_length"),
        (POSITIONS, "model_max_length original_max_position_embeddings rel_extent"),
        (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks depth"),
        (1, "encoder_layers num_encoder_layers conf_num_hidden_layers"),
        # Of towers for images and sound, which text never reaches.
        (64, "out_hidden_size projector_input_dim projector_output_dim vision_output_dim mm_embed_dim audio_embed_dim"),
        (64, "nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel output_proj_dims"),
        (64, "bias_max_distance"),
        (4, "conf_num_attention_heads mm_tokens_per_image"),
        (16, "mm_posemb_size position_embedding_size num_position_embeddings"),
        (32, "image_size crop_size"),
    )
    for name in names.split()
}

# Instead of those, in latent attention.
_LATENT_SIZES = {"num_key_value_heads": 4, "head_dim": 8}

# Set wherever a config has them. An encoder attends backwards only as a decoder.
_ALWAYS: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "is_decoder": True,
}

# Per-layer lists that say together what kind a layer is.
_LAYER_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "indexer_types",
    "layers_block_type",
    "no_rope_layers",
    "activation_sparsity_pattern",
)

# What multiplies or bounds logits, or divides the head's input, where a config has it: defaults are often neutral.
_LOGITS: dict[str, float] = {
    "logit_scale": 2.0,
    "logits_scaling": 0.5,
    "lm_head_multiplier": 2.0,
    "logits_mup_width_multiplier": 0.5,
    "dim_model_base": 32,  # half of the hidden size
    "final_logit_softcapping": 4.0,
    "logits_soft_cap": 4.0,
    "output_logit_soft_cap": 4.0,
    "attn_logit_softcapping": 2.0,
}

# By the `model_type` of the config: kinds of layers that its default lacks, and what fits its other sizes.
_SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": [_SLIDING, _SLIDING, _FULL]},  # dense, then two sparse
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},  # what it falls back to on short text
    "blt": {"encoder_hash_byte_group_size": [3, 4]},
    "cohere2_moe": {
        "layer_types": [_FULL, _SLIDING, _FULL],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_shared_experts": 1,
    },
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _FULL],
        # Its full attention is without positions.
        "rope_parameters": {
            _SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
            _FULL: None,
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v4": {
        "layer_types": [
            _SLIDING,
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "mlp_layer_types": ["hash_moe", "hash_moe", "hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "partial_rotary_factor": 0.5,
        "index_topk": 4,
    },
    "dots1": {
        "layer_types": [_FULL, _SLIDING, _FULL],
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "ernie4_5_moe": {"moe_layer_end_index": -1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3_text": {"final_logit_softcapping": None},  # which the multimodal class ignores
    "gemma3n_text": {
        "intermediate_size": 96,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
        "num_kv_shared_layers": 2,
    },
    "gemma4_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "global_head_dim": 32,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "gemma4_unified_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 2,
    },
    "glm_moe_dsa": {
        "layer_types": ["indexed_attention"] * 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "indexer_types": ["full", "full", "shared"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL]},
    "hrm_text": {"num_hidden_layers": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "logits_mup_width_multiplier": 1.0,
        "log_scaling_n_floor": 8,
    },
    # Mamba, mamba, attention, mamba, mamba, attention; every other one sparse.
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2, "num_hidden_layers": 6},
    "laguna": {
        "layer_types": [_FULL, _SLIDING, _FULL],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_attention_heads_per_layer": [4, 8, 4],
    },
    "lfm2": {"layer_types": ["conv", _FULL, "conv"]},
    "lfm2_moe": {"layer_types": ["conv", _FULL, "conv"]},
    "llama4_text": {
        "layer_types": ["chunked_attention", "chunked_attention", _FULL],
        "no_rope_layers": [1, 1, 0],
        "moe_layers": [1, 2],
        "num_experts_per_tok": 2,
        "floor_scale": 8,
    },
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": [_FULL, _SLIDING], "mlp_layer_types": ["dense", "sparse"]},
    "mimo_v2_flash": {"v_head_dim": 8},
    "minimax_m3_vl_text": {
        "layer_types": [_FULL, "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,  # one for each key head
        "index_block_size": 4,
        "index_topk_blocks": 3,
    },
    "minimax": {"layer_types": [_LINEAR, _FULL, _LINEAR]},  # its last layer hardly forgets
    "ministral": {"layer_types": [_SLIDING, _FULL], "head_dim": 16},
    "mistral": {"num_hidden_layers": 3},  # so that its windows reach back 45 tokens
    "mllama_text_model": {"cross_attention_layers": [1], "num_hidden_layers": 3},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},  # half of it on each side
    "nemotron": {"num_key_value_heads": 2},
    "phi3": {"sliding_window": WINDOW, "num_hidden_layers": 3},
    "phimoe": {"sliding_window": WINDOW, "num_hidden_layers": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [_FULL, _SLIDING]},
    "qwen2_moe": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": [_FULL, _SLIDING],
        "mlp_only_layers": [0],
    },
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [_FULL, _SLIDING]},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": {"mlp_only_layers": [0]},
    "qwen4_exp_text": {
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 1,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 24,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},  # recurrent, recurrent, attention
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [32, 32],
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "starcoder2": {"sliding_window": WINDOW, "num_hidden_layers": 3},
    "xlm": {"causal": True, "is_decoder": False},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"],
        "num_key_value_heads": 4,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "sliding_window": WINDOW, "num_experts_per_tok": 1},
}

# Buffers that choose experts, so that they are equally busy.
_ROUTER_BIASES = ("e_score_correction_bias", "expert_bias", "balancing_biases")

# Types whose other parts need a package that this project does not have: small configs are of the text decoder alone.
_TEXT_ONLY = ("gemma3n",)  # the image tower comes from timm


def small_config(kind: str, **changes: Any) -> PretrainedConfig:
    """The config of a type, multimodal where the type is; `changes` are fields of its text decoder."""
    default = CONFIG_MAPPING[kind]()
    return _shrunk(default.get_text_config(decoder=True) if kind in _TEXT_ONLY else default, changes)


def small_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose random weights make every part of it count, in eval mode and float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomize(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _shrunk(config: PretrainedConfig, changes: dict[str, Any]) -> PretrainedConfig:
    """A small copy of a default config and of all configs inside it."""
    config.allow_global_per_layer_attribute_access = True  # Gemma 4's head sizes differ by layer
    default = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(config)}
    given = _sizes(default) | _layers(default) | {name: value for name, value in _ALWAYS.items() if name in default}
    text = config.get_text_config(decoder=True)
    for name, sub_class in config.sub_configs.items():
        sub = getattr(config, name)
        if sub is None and sub_class is not AutoConfig:
            sub = sub_class()
        if sub is not None:
            given[name] = _shrunk(sub, changes if sub is text else {})
    given |= {name: value for name, value in _LOGITS.items() if name in default}
    given |= _with_count(_SPECIAL.get(config.model_type, {}))
    if all(getattr(config, name) is not text for name in config.sub_configs):
        given |= _with_count(changes)
    return type(config)(**given)


def _sizes(default: dict[str, Any]) -> dict[str, int]:
    """The sizes that a default exceeds."""
    sizes = {name: size for name, size in _SIZES.items() if type(default.get(name)) is int and default[name] > size}
    if "qk_rope_head_dim" in default:  # latent attention: every head has keys, and `head_dim` means their rotary part
        sizes |= {name: size for name, size in _LATENT_SIZES.items() if name in sizes}
    return sizes


def _layers(default: dict[str, Any]) -> dict[str, Any]:
    """The first layer of each kind, and a second one where all are of one kind."""
    count = default.get("num_hidden_layers")
    lists = {name: default[name] for name in _LAYER_LISTS if isinstance(default.get(name), list)}
    lists = {name: values for name, values in lists.items() if len(values) == count}
    kinds = list(zip(*lists.values(), strict=True))
    kept = sorted({kinds.index(kind) for kind in kinds})
    if len(kept) == 1:
        kept = [0, 1]
    return _with_count({name: [values[i] for i in kept] for name, values in lists.items()})


def _with_count(given: dict[str, Any]) -> dict[str, Any]:
    """With as many layers as per-layer lists have entries, where there are such lists."""
    counts = {len(given[name]) for name in _LAYER_LISTS if name in given}
    return {"num_hidden_layers": counts.pop()} | given if counts else given


def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw matrices anew, so large that attention tells tokens apart, and shift vectors, so that no bias stays zero."""
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() < 2 or _has_meaning(parameter):
                    parameter.add_(0.05 * noise)
                else:
                    # A short convolution has few inputs. Everything else has 64 or so.
                    parameter.copy_(noise * (parameter[0].numel() ** -0.5 if isinstance(module, nn.Conv1d) else 0.12))
            for name, buffer in module.named_buffers(recurse=False):
                if name in _ROUTER_BIASES:
                    buffer.add_(0.05 * torch.randn(buffer.shape, generator=generator))
                elif name == "tid2eid":  # the experts of each token, in DeepSeek V4's first layers
                    shuffled = torch.rand(buffer.shape[0], module.num_experts, generator=generator).argsort(dim=-1)
                    buffer.copy_(shuffled[:, : buffer.shape[1]])


def _has_meaning(parameter: nn.Parameter) -> bool:
    """Whether a fresh parameter is not drawn around zero, as are decays and mixing weights of recurrent layers."""
    return bool(parameter.mean().abs() > parameter.std(correction=0) / 2)
