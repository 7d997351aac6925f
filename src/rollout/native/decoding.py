"""Forward passes of a rollout: prefill of new prompts, and one token for each completion.

A decode step is tens of tiny kernels a layer, and transformers' layers spend more on launching them than the kernels
take. `LeanDecoder` computes the same for the Llama and Qwen3 architectures from the same weights: norms in one kernel,
queries and keys rotated together, residuals added in place. Whatever is not exactly these architectures (adapters,
quantised or sharded layers, hooks, a forward that someone replaced, autocast) is left to the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.masking_utils import causal_mask_function
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from src.models.attention.plan import MaskMod
from src.models.fused_norm import is_fused
from src.models.head.head import apply_map_
from src.models.structure import decoder_of, head_of, logit_map_of
from src.rollout.native.prefix_cache import CacheView, PrefixCache, Terms, shared_prefixes

PREFIX_ATTENTION = "rollout_prefix"
"""Name under which transformers finds the attention function of a rollout."""

_SHARED = {nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation}
_PARTS: dict[type[nn.Module], set[type[nn.Module]]] = {
    getattr(code, f"{name}ForCausalLM"): {
        getattr(code, name + part)
        for part in "ForCausalLM Model DecoderLayer Attention MLP RMSNorm RotaryEmbedding".split()
    }
    for code, name in ((llama, "Llama"), (qwen3, "Qwen3"))
}
"""By model, the modules of transformers whose forwards `LeanDecoder` knows."""


Forward = Callable[[Tensor, Tensor, PrefixCache], Tensor]
"""Logits [R, V] after tokens [R] at positions [R], with a cache that has the step's layout."""


def forward_for(model: PreTrainedModel, positions: int) -> Forward:
    """The leanest exact pass for this model, at positions below `positions`."""
    if is_lean(model):
        return LeanDecoder(model, positions)

    def forward(tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        with _cached(cache):
            return _logits(model, tokens[:, None], positions[:, None])[:, -1]

    return forward


def prefill(model: PreTrainedModel, prompts: Sequence[Tensor], cache: PrefixCache) -> Tensor:
    """Put prompts int64 [P_i] into the cache; logits [B, V] after each."""
    device = model.device
    lengths, shared = [len(p) for p in prompts], shared_prefixes(prompts)
    ends = list(zip(shared, lengths, strict=True))
    ids = torch.cat([prompt[start:] for prompt, start in zip(prompts, shared, strict=True)]).to(device)[None]
    positions = torch.cat([torch.arange(start, length, device=device) for start, length in ends])[None]
    kept = torch.tensor([length - start for start, length in ends], device=device).cumsum(0) - 1
    with cache.prefilling(lengths, shared), _cached(cache):
        return _logits(model, ids, positions, kept)[0]


def _logits(model: PreTrainedModel, ids: Tensor, positions: Tensor, kept: Tensor | slice = slice(None)) -> Tensor:
    """Logits [B, kept, V] of the text decoder after ids [B, L] at positions [B, L]."""
    output = decoder_of(model)(
        input_ids=ids,
        position_ids=positions,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),  # else positions that restart mean other texts
        use_cache=False,
    )
    logits: Tensor = head_of(model)(output.last_hidden_state[:, kept])
    apply_map_(logits, logit_map_of(model))
    return logits


def is_lean(model: nn.Module) -> bool:
    """Whether `LeanDecoder` computes what the model's forward would, here and now."""
    parts = _PARTS.get(type(model))
    if parts is None or torch_module._has_any_global_hook():
        return False
    for module in model.modules():
        if type(module) not in parts | _SHARED or ("forward" in vars(module) and not is_fused(module)):
            return False
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if getattr(module, "sliding_window", None) is not None:
            return False
    rope = str((getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default"))
    if "dynamic" in rope or rope == "longrope":  # their frequencies depend on the positions of a forward
        return False
    weights = list(model.parameters())
    if any(type(weight) is not nn.Parameter for weight in weights):
        return False
    if len({(weight.dtype, weight.device) for weight in weights}) > 1:
        return False
    return not torch.is_autocast_enabled(weights[0].device.type)


class LeanDecoder:
    """Decode steps of a model for which `is_lean` holds.

    Made anew for every call of `generate`: it refers to the model's weights and copies none but the norms of heads.
    Activations are [features, R]: with a few rows, MKL multiplies W x two to three times faster than x W^T.

    Args:
        model: whose weights to compute with.
        positions: that there may be.
    """

    def __init__(self, model: PreTrainedModel, positions: int) -> None:
        body: Any = model.model
        self._embedding = body.embed_tokens.weight
        everywhere = torch.arange(positions, device=self._embedding.device)[None]
        cos, sin = (angle[0].t() for angle in body.rotary_emb(self._embedding, everywhere))
        half = len(sin) // 2
        self._cos, self._sin = cos.contiguous(), torch.cat((-sin[:half], sin[half:]))  # [D, positions]
        self._layers = [_LeanLayer(layer, index) for index, layer in enumerate(body.layers)]
        self._norm, self._head = _Norm(body.norm), _Linear(model.lm_head)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        """Logits [R, V] after tokens int64 [R] at positions int64 [R], with a cache that has the step's layout."""
        x = F.embedding(tokens, self._embedding).t().contiguous()
        cos, sin = self._cos.index_select(1, positions), self._sin.index_select(1, positions)
        for layer in self._layers:
            layer.add_to(x, cos, sin, cache)
        return self._head(self._norm(x)).t().contiguous()


class _LeanLayer:
    def __init__(self, layer: Any, index: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index, self._size, self._scale = index, attention.head_dim, attention.scaling
        self._norm, self._mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._qk_norm = _head_norm(attention) if isinstance(attention, qwen3.Qwen3Attention) else None
        self._heads = attention.q_proj.out_features // attention.head_dim
        self._q, self._k, self._v = _Linear(attention.q_proj), _Linear(attention.k_proj), _Linear(attention.v_proj)
        self._out, self._down = _Linear(attention.o_proj), _Linear(mlp.down_proj)
        self._gate, self._up = _Linear(mlp.gate_proj), _Linear(mlp.up_proj)

    def add_to(self, x: Tensor, cos: Tensor, sin: Tensor, cache: PrefixCache) -> None:
        """Both residual branches, added to x [K, R] in place; cos and sin [D, R], the latter's first half negated."""
        rows = x.shape[1]
        h = self._norm(x)
        qkv = torch.cat((self._q(h), self._k(h), self._v(h))).view(-1, self._size, rows)  # [H + 2 H_kv, D, R]
        kv_heads = (len(qkv) - self._heads) // 2
        turned, value = qkv.split((self._heads + kv_heads, kv_heads))
        if self._qk_norm is not None:
            turned = self._qk_norm(turned)
        swapped = torch.cat(turned.chunk(2, dim=1)[::-1], dim=1)
        turned = (turned * cos).addcmul_(swapped, sin)
        query, key = turned.split((self._heads, kv_heads))
        query, key, value = (part.permute(2, 0, 1) for part in (query, key, value))  # [R, heads, D]
        out = cache.decode(self._index, query.contiguous(), key, value, Terms(self._scale))
        self._out.add_to(x, out.view(rows, -1).t())
        h = self._mlp_norm(x)
        self._down.add_to(x, F.silu(self._gate(h), inplace=True).mul_(self._up(h)))


class _Linear:
    """W x + b for x [K, R]."""

    def __init__(self, linear: nn.Linear) -> None:
        self._weight = linear.weight
        self._bias: Tensor | None = None if linear.bias is None else linear.bias[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(self._weight, x) if self._bias is None else torch.addmm(self._bias, self._weight, x)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        total.addmm_(self._weight, x)
        if self._bias is not None:
            total.add_(self._bias)


class _Norm:
    """Root mean square norm over the features of x [..., K, R], weights [..., K, 1]."""

    def __init__(self, norm: Any, weight: Tensor | None = None) -> None:
        self._weight = norm.weight[:, None] if weight is None else weight
        self._share = 1 / len(norm.weight)
        self._epsilon = torch.tensor(norm.variance_epsilon, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-2, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=self._share).rsqrt_()  # of the mean square
        return (wide * scale).to(x.dtype).mul_(self._weight)


def _head_norm(attention: Any) -> _Norm:
    """Norm of queries and keys [H + H_kv, D, R] at once; `D` weights a head are copied for this call of `generate`."""
    norms = attention.q_norm, attention.k_norm
    counts = (projection.out_features // attention.head_dim for projection in (attention.q_proj, attention.k_proj))
    weights = [norm.weight[:, None].expand(n, -1, 1) for norm, n in zip(norms, counts, strict=True)]
    return _Norm(attention.q_norm, torch.cat(weights))


_CAUSAL: Any = causal_mask_function
_cache: ContextVar[PrefixCache | None] = ContextVar("cache", default=None)


@contextmanager
def _cached(cache: PrefixCache) -> Iterator[None]:
    """Around the forward of a model: its masks are views of this cache."""
    token = _cache.set(cache)
    try:
        yield
    finally:
        _cache.reset(token)


def _prefix_mask(
    *, mask_function: MaskMod, local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> CacheView:
    """A mask for the layers of one kind, in transformers' interface: the cache, and what such a layer sees of it.

    Raises:
        ValueError: the model asks for a mask that is more than a causal one within a window.
    """
    cache = _cache.get()
    if cache is None or use_vmap or (local_size is None and mask_function is not _CAUSAL):
        raise ValueError(f"attention '{PREFIX_ATTENTION}': expected a causal mask of a forward with a cache.")
    return cache.view(local_size, mask_function)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: CacheView | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Attention function in transformers' interface; the mask brings the cache, which knows who sees what.

    Query, key, value and the result are as in `PrefixCache.attend`; no weights are returned. Without `scaling` it is
    D^-1/2; `softcap` and `s_aux` are as in `models.attention.packed`. Other keywords are refused where they would
    change the result.

    Raises:
        ValueError: without a cache, or where the layer wants what this function does not do.
    """
    if not isinstance(attention_mask, CacheView):
        raise ValueError(f"attention '{PREFIX_ATTENTION}': expected the cache as the mask, found another mask.")
    for name in ("sinks", "position_bias", "alibi"):
        if unsupported.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__}: the shared-prefix cache knows no {name}. Set rollout.cache=padded."
            )
    terms = Terms(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, s_aux, attention_mask)
    return attention_mask.cache.attend(int(module.layer_idx), query, key, value, terms), None  # type: ignore[arg-type]


AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
AttentionMaskInterface.register(PREFIX_ATTENTION, _prefix_mask)
