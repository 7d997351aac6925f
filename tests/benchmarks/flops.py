"""Useful floating-point operations of an update: what its result needs, however it is computed.

A multiplication and an addition are two. Forward and backward together cost three forwards: each product a @ b has two
more in its gradient. What is computed again (checkpointed layers, logits in backward) counts once. Norms, activations,
softmax and rotary embeddings are left out.

    body       6 · (weights of the decoder's linear layers) · (tokens of the packed row)
    head       6 · hidden size · vocabulary · (scored tokens)
    attention  12 · layers · heads · head size · (query-key pairs that the causal mask allows)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import row_tokens
from src.models.policy import Policy
from src.models.structure import decoder_of, layers_of


def query_key_pairs(prompt: int, completions: Sequence[int]) -> int:
    """Pairs of a packed group: P(P+1)/2 in the prompt, and for T-1 input tokens of a completion (T-1)P + (T-1)T/2.

    >>> query_key_pairs(3, [3])  # as one causal row of 5: 15
    15
    >>> query_key_pairs(3, [3, 2])  # and one token more, which sees the prompt and itself: 4
    19

    Args:
        prompt: P tokens.
        completions: sampled tokens T of each completion.
    """
    return prompt * (prompt + 1) // 2 + sum((t - 1) * prompt + (t - 1) * t // 2 for t in completions)


def update_flops(
    *,
    body_weights: int,
    hidden: int,
    vocabulary: int,
    layers: int,
    heads: int,
    head_size: int,
    tokens: int,
    scored: int,
    pairs: int,
) -> int:
    """The formula above, in its names."""
    return 6 * body_weights * tokens + 6 * hidden * vocabulary * scored + 12 * layers * heads * head_size * pairs


def policy_update_flops(policy: Policy, groups: Sequence[PromptGroup]) -> int:
    """Useful operations of an update of these groups."""
    config = policy.model.config.get_text_config()
    heads = config.num_attention_heads
    return update_flops(
        body_weights=sum(
            m.weight.numel()
            for layer in layers_of(decoder_of(policy.model))
            for m in layer.modules()
            if isinstance(m, nn.Linear)
        ),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        heads=heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        tokens=sum(map(row_tokens, groups)),
        scored=sum(len(group.token_ids) for group in groups),
        pairs=sum(query_key_pairs(len(group.prompt_ids), group.lengths.tolist()) for group in groups),
    )
