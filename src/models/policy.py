"""The trained policy: a Hugging Face causal LM that scores rows of completions."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.algorithm.packing import PackedRow
from src.models import compiling
from src.models.dropout import dropout_of, switch_off
from src.models.fused_norm import fuse_norms
from src.models.head.gradients import LastLayerGradients, last_layer_gradients
from src.models.head.head import TokenLoss, token_logprobs_and_entropies, token_loss
from src.models.moe import balance_loss, check_router_loss
from src.models.recomputing import Recomputed, recompute
from src.models.rows import RowStates, packed_states, prepare, separate_states
from src.models.structure import decoder_of, head_of, logit_map_of


class TokenScores(NamedTuple):
    """What the policy says about each sampled token of a row.

    A tuple, because FSDP finds the tensors that it must hook in tuples and not in dataclasses.

    Attributes:
        logprobs: float32 [N], log-probability of the token.
        entropies: float32 [N], entropy in nats of the distribution that it is drawn from.
        last_layer: what the head's gradient is like at each token; None unless asked for.
        loss: a scalar, the only one with gradient where a loss was given; None without.
        balance: a scalar with gradient, `router_loss` times what keeps experts in use; 0 where it is not asked for.
    """

    logprobs: Tensor
    entropies: Tensor
    last_layer: LastLayerGradients | None = None
    loss: Tensor | None = None
    balance: Tensor | float = 0.0


class Policy(nn.Module):
    """Scores the sampled tokens of rows with a causal LM.

    The head is applied here rather than by the model, so that no [L, V] logits exist and FSDP gathers the head's
    weight with the root module. `model` stays an ordinary model: given batches without a plan it attends through
    SDPA, so it can generate (in eval mode: in training mode transformers' checkpointed layers drop the cache).

    Args:
        model: any causal LM with a linear head; of one that reads images too, the text decoder is used and trained.
        rows: how the decoder runs over a row, see `models.rows`. Which way is right for a model, `config.guard` finds.
        gradient_checkpointing: what the backward of each decoder layer computes again (`models.recomputing`).
        compile_layers: compile each decoder layer (`models.compiling`). In place of `selective`, the compiler chooses
            what is computed again, and it fuses the norms.
        fused_norms: RMSNorm layers in fewer passes where they run in float32 on a CPU (`models.fused_norm`).
        head_chunk: tokens whose logits exist at once; None: as many as `models.head.head.chunk_tokens` says.
        dropout: leave the model's dropout as it is, for training mode; otherwise it is switched off.
        router_loss: weight of the loss that keeps a mixture's experts in use (`models.moe`), beside the given one.

    Attributes:
        dropout: the dropout that the model came with (`models.dropout`).
        router_loss: see there.

    Raises:
        ConfigError: the model has no linear head, `rows` is `packed` and it cannot run on packed rows, or
            `compile_layers` and it is a mixture of experts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rows: Literal["packed", "separate"] = "packed",
        gradient_checkpointing: Recomputed = False,
        compile_layers: bool = False,
        fused_norms: bool = True,
        head_chunk: int | None = None,
        dropout: bool = False,
        router_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.dropout = dropout_of(model)
        if not dropout:
            switch_off(model)
        self.rows = rows
        self.head_chunk, self._logit_map = head_chunk, logit_map_of(model)
        self.router_loss = router_loss
        check_router_loss(model, router_loss)
        prepare(model, rows)
        if fused_norms and not compile_layers:
            fuse_norms(model)
        if compile_layers:
            compiling.compile_layers(model)
        recompute(model, gradient_checkpointing, compiled=compile_layers)

    def forward(
        self,
        row: PackedRow,
        *,
        temperature: float = 1.0,
        loss: TokenLoss | None = None,
        whole: bool = False,
        last_layer: Literal["moments", "gram"] | None = None,
    ) -> TokenScores:
        """Log-probability and entropy of the row's N sampled tokens.

        Args:
            row: on the policy's device.
            temperature: the sampler's; divides the logits.
            loss: a sum over tokens, whose gradient is made in the same pass over the logits (`head.token_loss`);
                log-probabilities and entropies then carry none.
            whole: the loss is asked once, for all tokens together, and backward computes the logits again.
            last_layer: measure the head's gradients too, their size (`moments`, nearly free) or also their inner
                products (`gram`, [N, N]). Only under `torch.no_grad()`. They belong to the forward because FSDP
                gathers the head's weight there. A head that is frozen (LoRA) or tied to the embeddings is measured as
                if it were trained on its own.

        Raises:
            ValueError: an unknown `last_layer`.
            ConfigError: layers that cannot run on packed rows, where `rows` is `packed`.
            RuntimeError: `last_layer` with gradients enabled.
        """
        if last_layer not in (None, "moments", "gram"):
            raise ValueError(f"Policy: expected last_layer None, 'moments' or 'gram', found '{last_layer}'.")
        if last_layer is not None and torch.is_grad_enabled():
            raise RuntimeError(f"Policy: last_layer='{last_layer}' carries no gradient; call under torch.no_grad().")
        balanced = {"output_router_logits": True} if loss is not None and self.router_loss else {}
        states, head = self.states(row, **balanced), head_of(self.model)
        inputs = (states.hidden, head.weight, row.targets)
        settings: dict[str, Any] = {"temperature": temperature, "bias": head.bias, "chunk": self.head_chunk}
        settings["logit_map"] = self._logit_map
        if last_layer is not None:
            return TokenScores(*last_layer_gradients(*inputs, **settings, gram=last_layer == "gram"))
        if loss is not None:
            if whole:
                scores = token_logprobs_and_entropies(*inputs, **settings)
                total, (logprobs, entropies) = loss(*scores, slice(None)), (one.detach() for one in scores)
            else:
                total, logprobs, entropies = token_loss(*inputs, loss, **settings)
            balance = balance_loss(states.router_logits, self.model, states.real)
            return TokenScores(logprobs, entropies, loss=total, balance=self.router_loss * balance)
        return TokenScores(*token_logprobs_and_entropies(*inputs, **settings))

    def states(self, row: PackedRow, **options: bool) -> RowStates:
        """What the decoder makes of a row; `options` as of `models.rows.packed_states`."""
        states = packed_states if self.rows == "packed" else separate_states
        with compiling.many_graphs():
            return states(decoder_of(self.model), row, **options)
