"""The native engine's predicted cache against the one that it makes."""

import pytest
import torch

from src.models.loading.architecture import load_architecture
from src.models.loading.loading import PolicyConfig, load_model
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.rollout.native.prefix_cache import PrefixCache
from src.wings.memory.rollout_parts import GenerationBatch, attention_heads, native_parts, vllm_parts
from tests.architectures.small import small_config, small_model

BUDGETS = {"prefill_token": 0.0, "max_sequences": 256, "max_batch_tokens": 131_072}


def test_the_cache_is_as_large_as_predicted(random_policy, monkeypatch):
    caches: list[PrefixCache] = []
    monkeypatch.setattr(
        "src.rollout.native.batching.PrefixCache",
        lambda *args, **kw: caches.append(PrefixCache(*args, **kw)) or caches[-1],
    )
    settings = PolicyConfig(path=random_policy, dtype="float32")
    sampling = SamplingParams(n=3, max_new_tokens=100)
    NativeEngine(load_model(settings)).generate([torch.arange(50)] * 2, sampling, [0, 1])
    (cache,) = caches
    stored = sum(x.nbytes for pair in (*cache._prompt.values(), *cache._own.values()) for x in pair)

    batch = GenerationBatch(2, 50, sampling)
    predicted = native_parts(
        load_architecture(settings),
        [batch],
        key_bytes=4,
        value_bytes=4,
        logits=torch.float32,
        copied_weights=0,
        **BUDGETS,
    )
    parts = {part.name: part.bytes for part in predicted}
    assert parts["key/value cache"] == {"rollout": stored}
    vocabulary = load_architecture(settings).vocab_size
    assert parts["sampling"]["rollout"] > 6 * vocabulary * (4 + 4 + 8)  # scaled, log-probabilities, cumulative


def test_a_copy_and_vllm():
    architecture = load_architecture(PolicyConfig(hub_id="Qwen/Qwen3-8B"))
    types = {"key_bytes": 2, "value_bytes": 2, "logits": torch.bfloat16}
    long = GenerationBatch(512, 2048, SamplingParams(n=8, max_new_tokens=2048))
    found = native_parts(architecture, [long], **types, copied_weights=1000, can_share=True, **BUDGETS)
    parts = {part.name: part for part in found}
    assert parts["engine weights"].most == 1000
    assert parts["engine weights"].keys == ("rollout.owns_model=false", "rollout=vllm_server")
    # 7 prompts with their 8 completions are the most that 131,072 tokens hold, and one prompt more; a completion's last
    # token is not fed back; 36 layers, 8 heads of 128, k and v
    assert parts["key/value cache"].most == (8 * 2048 + 7 * 8 * 2047) * 36 * 2 * 8 * 128 * 2


def test_vllm_takes_its_fraction_and_sleeps_without_it():
    given = {"cuda": True, "fraction": 0.4, "device_bytes": 1000, "weights": 30, "cache": None}
    rest, awake = vllm_parts(sleeps=True, **given)
    assert awake.bytes == {"rollout": 400, "scoring": 400, "handover": 400} and rest.bytes["step"] > 0
    assert vllm_parts(sleeps=False, **given)[1].bytes["step"] == 400
    (on_cpu,) = vllm_parts(sleeps=False, **{**given, "cuda": False, "cache": 7})
    assert on_cpu.bytes["step"] == 37


@pytest.mark.parametrize("kind", ["gemma4_text", "deepseek_v3", "jetmoe", "gpt_oss", "gpt2", "gpt_bigcode"])
def test_the_keys_that_are_stored_are_those_of_the_config(kind, monkeypatch):
    caches: list[PrefixCache] = []
    monkeypatch.setattr(
        "src.rollout.native.batching.PrefixCache",
        lambda *args, **kw: caches.append(PrefixCache(*args, **kw)) or caches[-1],
    )
    config = small_config(kind)
    NativeEngine(small_model(config)).generate([torch.arange(20)], SamplingParams(n=2, max_new_tokens=4), [0])
    stored = sum(x.numel() for pair in caches[0]._prompt.values() for x in pair)
    layers = map(attention_heads, config.get_text_config(decoder=True).per_layer_config)
    assert stored == 20 * sum(heads * (key + value) for heads, key, value in layers)


def test_a_models_own_cache_holds_the_prompt_with_each_completion():
    architecture = load_architecture(PolicyConfig(hub_id="Qwen/Qwen3-8B"))
    types = {"key_bytes": 2, "value_bytes": 2, "logits": torch.bfloat16, "copied_weights": 0}
    budgets = {"prefill_token": 1000.0, "max_sequences": 64, "max_batch_tokens": 10_000}
    batch = GenerationBatch(512, 700, SamplingParams(n=4, max_new_tokens=300))

    def parts(**own):
        found = native_parts(architecture, [batch], **types, **budgets, **own)
        return {part.name: part.bytes["rollout"] for part in found if part.most}

    # 10 sequences of 1,000 tokens are 2 prompts with their 4 completions
    cached = parts(own_cache=lambda tokens: 7 * tokens)
    assert cached["key/value cache"] == 8 * 7 * 1000
    anew = parts(own_cache=lambda _: 0, recomputes=True)
    assert "key/value cache" not in anew
    # all 1,000 tokens of a sequence go through each forward, with a mask in two forms of 1 and 2 bytes
    logits = 2 * 8 * 151936 * 4
    assert anew["sampling"] == 8 * (1000 * 1000 + 1000**2 * 3) + logits
