"""Tiny random models, random groups, and the ordinary padded forward to compare with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from src.algorithm.experience import PromptGroup, Tree
from src.rollout.native.engine import NativeEngine

VOCABULARY = 97

# Logits and log-probabilities of a `tiny_model` by two kernels in float32, and the gradients of a loss, relative to
# their norm. Some 17 products of up to 48 terms lie one behind the other: √17 √48 2^-24 = 1.7e-6 of a hidden state, in
# a random direction, so 1.7e-6 |h| |w| / √32 = 2.9e-6 of a logit; 4 standard deviations of a difference of two are
# 1.6e-5. A backward has twice the products of its forward: √51 √48 2^-24 = 3e-6 of the gradient.
TOLERANCE = 2e-5


def tiny_model(kind: str, *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random two-layer Qwen3 or Llama in float32: 4 query heads on 2 key heads, weights large enough to matter."""
    shape: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **overrides,
    }
    config = {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](**shape)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def perturb_adapters(model: PreTrainedModel) -> None:
    """Adapters start as nothing (B = 0); make them count."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def random_group(prompt: int, lengths: list[int], vocabulary: int = VOCABULARY, seed: int = 0) -> PromptGroup:
    """A group of random ids; its other fields are zeros."""
    generator = torch.Generator().manual_seed(seed)
    n, g = sum(lengths), len(lengths)
    return PromptGroup(
        prompt_ids=torch.randint(3, vocabulary, (prompt,), generator=generator),
        token_ids=torch.randint(3, vocabulary, (n,), generator=generator),
        lengths=torch.tensor(lengths),
        rollout_logprobs=torch.zeros(n),
        regions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.zeros(g),
        advantages=torch.zeros(g),
        weights=torch.ones(n),
    )


def random_episodes(prompt: int, seed: int, episodes: int = 3, vocabulary: int = VOCABULARY) -> PromptGroup:
    """A group of episodes of random ids: observed tokens among them, and histories rewritten up to three deep."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    sizes: list[int] = []
    parents: list[int] = []
    completions: list[int] = []
    for episode in range(episodes):
        path = [-1]
        for _ in range(draw(1, 6)):
            path = path[: draw(1, min(len(path), 3) + 1)]
            parents.append(path[-1])
            path.append(len(sizes))
            sizes.append(draw(1, 6))
            completions.append(episode)
    ends = torch.tensor(sizes).cumsum(0) - 1
    tokens = torch.randint(3, vocabulary, (int(ends[-1]) + 1,), generator=generator)
    sampled = torch.rand(len(tokens), generator=generator) < 0.6
    sampled[ends] = True
    owners = torch.tensor(completions)
    lengths = torch.bincount(owners.repeat_interleave(torch.tensor(sizes))[sampled])
    plain = random_group(prompt, lengths.tolist(), vocabulary, seed)
    tree = Tree(tokens, sampled, torch.tensor(sizes), torch.tensor(parents), owners)
    return replace(plain, token_ids=tokens[sampled], tree=tree)


def path_scores(model: PreTrainedModel, group: PromptGroup, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N] of a group's sampled tokens, each run behind its history, one at a time."""
    tree = group.tree
    assert tree is not None
    runs = tree.token_ids.split(tree.sizes.tolist())
    own = tree.sampled.split(tree.sizes.tolist())
    histories: list[Tensor] = []
    logprobs, entropies = [], []
    for run, parent, sampled in zip(runs, tree.parents.tolist(), own, strict=True):
        history = group.prompt_ids if parent < 0 else histories[parent]
        histories.append(torch.cat([history, run]))
        ids = histories[-1][None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
        predicting = logits.log_softmax(-1)[len(history) - 1 : -1][sampled]
        logprobs.append(predicting.gather(1, run[sampled][:, None].to(model.device)).squeeze(1))
        entropies.append(-(predicting.exp() * predicting).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def padded_scores(model: PreTrainedModel, groups: list[PromptGroup], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N] the ordinary way: a padded row a completion, full logits, log_softmax.

    The model computes in its own precision; log_softmax is in double, whose float32 form is the noisiest step of all.
    """
    rows = [
        (group.prompt_ids, completion)
        for group in groups
        for completion in torch.split(group.token_ids, group.lengths.tolist())
    ]
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(ids)
    for index, (prompt, completion) in enumerate(rows):
        size = len(prompt) + len(completion)
        ids[index, :size] = torch.cat([prompt, completion])
        mask[index, :size] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double() / temperature
    logp = logits.log_softmax(-1)
    logprobs, entropies = [], []
    for index, (prompt, completion) in enumerate(rows):
        predicting = logp[index, len(prompt) - 1 : len(prompt) + len(completion) - 1]
        logprobs.append(predicting.gather(1, completion[:, None].to(model.device)).squeeze(1))
        entropies.append(-(predicting.exp() * predicting).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def replay_completions(patch: pytest.MonkeyPatch) -> None:
    """What the native engine was asked once it answers alike again, in other runs too.

    For runs whose weights differ by rounding: a token that is sampled on the edge between two must not be another one.
    """
    generate, made = NativeEngine.generate, {}

    def replayed(self, prompts, params, seeds):  # type: ignore[no-untyped-def]
        asked = (self.weights_version, tuple(tuple(prompt.tolist()) for prompt in prompts), params, tuple(seeds))
        if asked not in made:
            made[asked] = generate(self, prompts, params, seeds)
        return made[asked]

    patch.setattr(NativeEngine, "generate", replayed)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result
