"""The lean step against the model's own forward, and which models are left to that."""

from itertools import chain

import pytest
import torch
from torch import nn

from src.models.fused_norm import fuse_norms
from src.models.loading.lora import LoraSettings, add_lora
from src.rollout.engine import SamplingParams
from src.rollout.native import decoding
from src.rollout.native.decoding import is_lean
from src.rollout.native.engine import NativeEngine
from tests.rollout.native.test_engine import (
    STOPS,
    TOLERANCE,
    assert_same_completions,
    build,
    ragged,
    same_tokens,
    tokens_of,
)

PARAMS = SamplingParams(n=3, max_new_tokens=30, stop_token_ids=STOPS)
BIASES = {"attention_bias": True}


def sampled(model):
    return NativeEngine(model).generate(ragged(9, 30, 2), PARAMS, [5, 6, 7])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {}),
        ("llama", {}),
        ("qwen3", BIASES),
        ("llama", BIASES | {"mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}}),
    ],
)
def test_it_computes_what_the_model_does(kind, changes, monkeypatch):
    model = build(kind, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases are 1 and 0 at the start
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    assert is_lean(model)
    lean = sampled(model)
    monkeypatch.setattr(decoding, "is_lean", lambda model: False)
    own = sampled(model)
    assert_same_completions(lean, own, model, ragged(9, 30, 2), PARAMS, [5, 6, 7])
    for one, other in zip(chain(*lean), chain(*own), strict=True):
        same = same_tokens(one, other)
        torch.testing.assert_close(one.logprobs[:same], other.logprobs[:same], atol=TOLERANCE, rtol=0)


def test_bfloat16_rounds_where_the_model_does(monkeypatch):
    model = build("qwen3").bfloat16()
    prompt, params = ragged(20), SamplingParams(n=16, max_new_tokens=2)
    lean = NativeEngine(model).generate(prompt, params, [1])[0]
    monkeypatch.setattr(decoding, "is_lean", lambda model: False)
    own = NativeEngine(model).generate(prompt, params, [1])[0]
    # The first token comes from the prompt, by one code for both. Of the second only those that are the same compare.
    # Some 24 roundings to 8 bits, each of up to 2^-9, or 2^-9 / √3 on average: √24 2^-9 / √3 = 5.5e-3 of a hidden
    # state, 0.57 of that in a logit (see TOLERANCE): 3.2e-3, and √2 of it, 4.5e-3, between two that round on their own.
    gaps = [(a.logprobs - b.logprobs)[1].abs() for a, b in zip(lean, own, strict=True) if same_tokens(a, b) == 2]
    assert len(gaps) > 8 and sum(gaps) / len(gaps) < 0.01


def test_changed_weights_count_at_once():
    """In place, through `.data`, or by another tensor under the name: no copy of old weights is kept."""
    model = build("qwen3")
    engine, prompt = NativeEngine(model), ragged(9)
    changes = (
        lambda: model.model.layers[0].self_attn.q_norm.weight.data.mul_(2),
        lambda: model.model.layers[1].mlp.up_proj.weight.data.mul_(-1),
        lambda: setattr(model.model.layers[2].self_attn, "k_proj", nn.Linear(32, 32, bias=False)),
        lambda: setattr(model.model.norm, "weight", nn.Parameter(torch.rand(32))),
    )
    for change in changes:
        before = engine.generate(prompt, PARAMS, [1])[0]
        change()
        after = engine.generate(prompt, PARAMS, [1])[0]
        assert tokens_of([before]) != tokens_of([after])
        fresh = NativeEngine(model).generate(prompt, PARAMS, [1])[0]
        for one, other in zip(after, fresh, strict=True):
            assert torch.equal(one.logprobs, other.logprobs)
        with torch.no_grad():
            logits = model(torch.cat([prompt[0], after[0].token_ids])[None]).logits[0, len(prompt[0]) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, after[0].token_ids[:, None])[:, 0]
        torch.testing.assert_close(after[0].logprobs, expected, atol=TOLERANCE, rtol=0)


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)


def replaced(model):
    model.model.layers[1].forward = model.model.layers[1].forward


def adapted(model):
    add_lora(model, LoraSettings(rank=2))


def mixed(model):
    model.model.layers[0].half()


@pytest.mark.parametrize("change", [hooked, replaced, adapted, mixed])
def test_other_models_are_left_to_their_own_forward(change):
    model = build("qwen3")
    assert is_lean(model)
    change(model)
    assert not is_lean(model)


def test_a_hooked_models_completions_are_its_own():
    model, prompt = build("llama"), ragged(9)
    hooked(model)
    completion = NativeEngine(model).generate(prompt, PARAMS, [1])[0][0]
    with torch.no_grad():
        logits = model(torch.cat([prompt[0], completion.token_ids])[None]).logits[0, len(prompt[0]) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, completion.token_ids[:, None])[:, 0]
    torch.testing.assert_close(completion.logprobs, expected, atol=TOLERANCE, rtol=0)


def test_the_trainers_own_norms_are_known():
    model = build("qwen3")
    assert fuse_norms(model) > 0 and is_lean(model)


def test_autocast_is_left_to_the_model():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_lean(build("llama"))
