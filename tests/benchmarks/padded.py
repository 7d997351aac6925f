"""The usual form of the update: one padded row a completion, prompt repeated, logits over all its tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from src.algorithm.experience import PromptGroup


def random_groups(prompts: list[torch.Tensor], n: int, length: int, vocabulary: int) -> list[PromptGroup]:
    """Groups of n completions of `length` random tokens, with an advantage each and token weights of 1."""
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(n * length)
    return [
        PromptGroup(
            prompt_ids=prompt,
            token_ids=torch.randint(vocabulary, (n * length,), generator=generator),
            lengths=torch.full((n,), length),
            rollout_logprobs=zeros,
            regions=zeros.long(),
            rewards=zeros[:n],
            advantages=torch.randn(n, generator=generator),
            weights=torch.ones(n * length),
        )
        for prompt in prompts
    ]


def slices(group: PromptGroup, rows: int) -> list[PromptGroup]:
    """The group in parts of at most `rows` completions, for a batch that fits into memory."""
    sequences = group.sequence_ids
    parts = []
    for start in range(0, len(group.lengths), rows):
        completions = slice(start, start + rows)
        tokens = (sequences >= start) & (sequences < start + rows)
        parts.append(
            replace(
                group,
                **{key: getattr(group, key)[completions] for key in ("lengths", "rewards", "advantages")},
                **{key: getattr(group, key)[tokens] for key in ("token_ids", "rollout_logprobs", "regions", "weights")},
            )
        )
    return parts


def padded_logprobs(model: PreTrainedModel, groups: list[PromptGroup]) -> torch.Tensor:
    """Log-probabilities [N] of all groups' tokens from rows `[prompt, completion]` padded right, in one batch."""
    rows, positions, targets = [], [], []
    for group in groups:
        for completion in group.token_ids.split(group.lengths.tolist()):
            rows.append(torch.cat([group.prompt_ids, completion]))
            positions.append(torch.arange(len(group.prompt_ids) - 1, len(rows[-1]) - 1, device=completion.device))
            targets.append(completion)
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits
    width = batch.shape[1]
    index = torch.cat([row * width + where for row, where in enumerate(positions)])
    scored = logits.flatten(0, 1).index_select(0, index).float()
    return scored.log_softmax(-1).gather(1, torch.cat(targets)[:, None])[:, 0]
