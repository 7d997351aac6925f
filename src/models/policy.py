"""The trained policy: a Hugging Face causal LM that scores packed rows."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.algorithm.packing import PackedRow
from src.models.attention.packed import MARK, PACKED_ATTENTION, check_attention_support, sliding_window
from src.models.attention.plan import AttentionPlan, dense_mask
from src.models.dropout import dropout_of, switch_off
from src.models.fused_norm import fuse_norms
from src.models.head.gradients import LastLayerGradients, last_layer_gradients
from src.models.head.head import TokenLoss, token_logprobs_and_entropies, token_loss


class TokenScores(NamedTuple):
    """What the policy says about each sampled token of a row.

    A tuple, because FSDP finds the tensors that it must hook in tuples and not in dataclasses.

    Attributes:
        logprobs: float32 [N], log-probability of the token.
        entropies: float32 [N], entropy in nats of the distribution that it is drawn from.
        last_layer: what the head's gradient is like at each token; None unless asked for.
        loss: a scalar, the only one with gradient where a loss was given; None without.
    """

    logprobs: Tensor
    entropies: Tensor
    last_layer: LastLayerGradients | None = None
    loss: Tensor | None = None


class Policy(nn.Module):
    """Scores the sampled tokens of packed rows with a causal LM.

    The head is applied here rather than by the model, so that no [L, V] logits exist and FSDP gathers the head's
    weight with the root module. `model` stays an ordinary model: given batches without a plan it attends through
    SDPA, so it can generate (in eval mode: in training mode transformers' checkpointed layers drop the cache).

    Args:
        model: any decoder-only model whose attention goes through transformers' `AttentionInterface`.
        attention: `packed` (our attention function) or `dense` (SDPA with an [L, L] mask: the reference, and for
            models that refuse custom functions).
        gradient_checkpointing: recompute each decoder layer in backward.
        fused_norms: RMSNorm layers in fewer passes where they run in float32 on a CPU (`models.fused_norm`).
        head_chunk: tokens whose logits exist at once; None: as many as `models.head.head.chunk_tokens` says.
        dropout: leave the model's dropout as it is, for training mode; otherwise it is switched off.

    Attributes:
        dropout: the dropout that the model came with (`models.dropout`).

    Raises:
        ValueError: the model cannot run on packed rows, or scales its logits in a way that the head does not know.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: Literal["packed", "dense"] = "packed",
        gradient_checkpointing: bool = False,
        fused_norms: bool = True,
        head_chunk: int | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        check_attention_support(model.config, attention)
        _check_head(model)
        self.model = model
        self.dropout = dropout_of(model)
        if not dropout:
            switch_off(model)
        self.attention = attention
        self.head_chunk = head_chunk
        implementation = PACKED_ATTENTION if attention == "packed" else "sdpa"
        model.set_attn_implementation(implementation)
        if model.config._attn_implementation != implementation:
            raise ValueError(
                f"model type '{model.config.model_type}' does not accept attention '{implementation}': it does not use "
                "transformers' AttentionInterface. Choose a model that does, such as Qwen3 or Llama."
            )
        if fused_norms:
            fuse_norms(model)
        self._window = sliding_window(model.config)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, the units to shard.

        Raises:
            ValueError: the architecture has no list of layers, or several.
        """
        layers = [m for m in self._base.children() if isinstance(m, nn.ModuleList) and len(m)]
        if len(layers) != 1:
            raise ValueError(f"{type(self._base).__name__}: expected one list of decoder layers, found {len(layers)}.")
        return layers[0]

    @property
    def _base(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, getattr(self.model, self.model.base_model_prefix))

    def forward(
        self,
        row: PackedRow,
        *,
        temperature: float = 1.0,
        loss: TokenLoss | None = None,
        last_layer: Literal["moments", "gram"] | None = None,
    ) -> TokenScores:
        """Log-probability and entropy of the row's N sampled tokens.

        Args:
            row: on the policy's device.
            temperature: the sampler's; divides the logits.
            loss: a sum over tokens, whose gradient is made in the same pass over the logits (`head.token_loss`);
                log-probabilities and entropies then carry none.
            last_layer: measure the head's gradients too, their size (`moments`, nearly free) or also their inner
                products (`gram`, [N, N]). Only under `torch.no_grad()`. They belong to the forward because FSDP
                gathers the head's weight there. A head that is frozen (LoRA) or tied to the embeddings is measured as
                if it were trained on its own.

        Raises:
            ValueError: a sequence longer than the model's sliding window, or an unknown `last_layer`.
            RuntimeError: `last_layer` with gradients enabled.
        """
        if last_layer not in (None, "moments", "gram"):
            raise ValueError(f"Policy: expected last_layer None, 'moments' or 'gram', found '{last_layer}'.")
        if last_layer is not None and torch.is_grad_enabled():
            raise RuntimeError(f"Policy: last_layer='{last_layer}' carries no gradient; call under torch.no_grad().")
        hidden = self._hidden_states(row).index_select(0, row.score_positions)
        head = cast(nn.Linear, self.model.get_output_embeddings())
        inputs = (hidden, head.weight, row.targets)
        settings: dict[str, Any] = {"temperature": temperature, "bias": head.bias, "chunk": self.head_chunk}
        if last_layer is not None:
            return TokenScores(*last_layer_gradients(*inputs, **settings, gram=last_layer == "gram"))
        if loss is not None:
            total, logprobs, entropies = token_loss(*inputs, loss, **settings)
            return TokenScores(logprobs, entropies, loss=total)
        return TokenScores(*token_logprobs_and_entropies(*inputs, **settings))

    def _hidden_states(self, row: PackedRow) -> Tensor:
        """Last hidden states [L, d] of the row."""
        device = row.input_ids.device
        if self._window is not None:
            longest = max(layout.prompt_length + max(layout.completion_lengths) - 1 for layout in row.layouts)
            if longest > self._window:
                raise ValueError(
                    f"a sequence of {longest} tokens exceeds the model's sliding window of {self._window}, which "
                    "packed rows do not model. Use shorter prompts or a lower sampling.max_new_tokens."
                )
        inputs: dict[str, Any] = {}
        if self.attention == "packed":
            # A mask of four dimensions is passed on untouched, so transformers builds none.
            inputs["attention_mask"] = torch.ones(MARK, dtype=torch.bool, device=device)
            inputs["packed_plan"] = AttentionPlan(row.layouts, device)
        else:
            inputs["attention_mask"] = dense_mask(row.layouts, device)
        output = self._base(
            input_ids=row.input_ids[None], position_ids=row.position_ids[None], use_cache=False, **inputs
        )
        return cast(Tensor, output.last_hidden_state[0])


def _check_head(model: PreTrainedModel) -> None:
    """Refuse models that change their logits after the head."""
    head = model.get_output_embeddings()
    kind = f"model type '{model.config.model_type}'"
    if type(head) is not nn.Linear:
        raise ValueError(f"{kind}: expected a linear output head, found {type(head).__name__}.")
    text = model.config.get_text_config()
    for key, neutral in (("final_logit_softcapping", None), ("logits_scaling", 1.0), ("logit_scale", 1.0)):
        found = getattr(text, key, neutral)
        if found not in (neutral, None):
            raise ValueError(
                f"{kind}: config key {key}={found} changes the logits after the head, which is not supported."
            )
