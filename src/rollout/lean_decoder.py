"""One decode step of the Llama and Qwen3 architectures with as few kernels as it takes.

A decode step is tens of tiny kernels a layer, and transformers' layers spend more on launching them than the kernels
take. This computes the same from the same weights: norms in one kernel, queries and keys rotated together, residuals
added in place. Whatever is not exactly these architectures (adapters, quantised or sharded layers, hooks, a forward
that someone replaced, autocast) is left to the model's own forward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from src.rollout.prefix_cache import PrefixCache

_SHARED = {nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation}
_PARTS: dict[type[nn.Module], set[type[nn.Module]]] = {
    llama.LlamaForCausalLM: {
        llama.LlamaForCausalLM,
        llama.LlamaModel,
        llama.LlamaDecoderLayer,
        llama.LlamaAttention,
        llama.LlamaMLP,
        llama.LlamaRMSNorm,
        llama.LlamaRotaryEmbedding,
    },
    qwen3.Qwen3ForCausalLM: {
        qwen3.Qwen3ForCausalLM,
        qwen3.Qwen3Model,
        qwen3.Qwen3DecoderLayer,
        qwen3.Qwen3Attention,
        qwen3.Qwen3MLP,
        qwen3.Qwen3RMSNorm,
        qwen3.Qwen3RotaryEmbedding,
    },
}


def is_lean(model: nn.Module) -> bool:
    """Whether `LeanDecoder` computes what the model's forward would, here and now."""
    parts = _PARTS.get(type(model))
    if parts is None or torch_module._has_any_global_hook():
        return False
    for module in model.modules():
        if type(module) not in parts | _SHARED or "forward" in vars(module):
            return False
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if getattr(module, "sliding_window", None) is not None:
            return False
    weights = list(model.parameters())
    if any(type(weight) is not nn.Parameter for weight in weights):
        return False
    if len({(weight.dtype, weight.device) for weight in weights}) > 1:
        return False
    return not torch.is_autocast_enabled(weights[0].device.type)


class LeanDecoder:
    """Decode steps of a model for which `is_lean` holds. Reads the model's weights at every step; keeps no copy."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._body: nn.Module = model.model
        self._head: nn.Module = model.lm_head
        self._qk_norm = isinstance(model, qwen3.Qwen3ForCausalLM)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        """Logits [R, V] after one token each.

        Args:
            tokens: int64 [R].
            positions: int64 [R].
            cache: with the step's layout.
        """
        x = F.embedding(tokens, self._body.embed_tokens.weight)
        cos, sin = self._body.rotary_emb(x, positions[:, None])  # [R, 1, D], as over one token's heads
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        for index, layer in enumerate(self._body.layers):
            self._attention(x, layer, index, cos, sin, cache)
            mlp = layer.mlp
            h = _rms_norm(x, layer.post_attention_layernorm)
            h = F.silu(_linear(h, mlp.gate_proj), inplace=True).mul_(_linear(h, mlp.up_proj))
            _add_linear(x, h, mlp.down_proj)
        return _linear(_rms_norm(x, self._body.norm), self._head)

    def _attention(
        self, x: Tensor, layer: nn.Module, index: int, cos: Tensor, sin: Tensor, cache: PrefixCache
    ) -> None:
        attention = layer.self_attn
        rows, size = len(x), attention.head_dim
        h = _rms_norm(x, layer.input_layernorm)
        q, k, v = (
            _linear(h, projection).view(rows, -1, size)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if self._qk_norm:
            q, k = _rms_norm(q, attention.q_norm), _rms_norm(k, attention.k_norm)
        q, k = _rotate(torch.cat((q, k), dim=1), cos, sin).split((q.shape[1], k.shape[1]), dim=1)
        out = cache.attend(index, q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), attention.scaling)
        _add_linear(x, out.reshape(rows, -1), attention.o_proj)


def _rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    if x.dtype == torch.float32:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    wide = x.float()  # as the models do: normalised in float32, rounded, then weighted
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [R, H, D]; the first half of `sin` [R, 1, D] is negated already."""
    swapped = torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)
    return (x * cos).addcmul_(swapped, sin)


def _linear(x: Tensor, linear: nn.Module) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)


def _add_linear(x: Tensor, y: Tensor, linear: nn.Module) -> None:
    """x [R, N] += linear(y [R, K]), in place."""
    x.add_(F.linear(y, linear.weight, linear.bias))
