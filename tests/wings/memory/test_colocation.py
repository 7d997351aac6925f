"""vLLM beside the trainer, by hand. tests/vllm/test_colocation.py asks vLLM itself."""

import pytest

from src.models.loading.architecture import load_architecture
from src.models.loading.policy_config import PolicyConfig
from src.runs.folder import GIB
from src.wings.memory.colocation import cache_bytes, free_share, profile_bytes, sequences_at_once
from src.wings.memory.engine_room import EngineRoom
from src.wings.memory.plan import Capacity, MemoryPart, MemoryPlan
from src.wings.memory.preflight import MemoryPlanError, check_memory

QWEN = 36 * 8 * 2 * 128 * 2
"""Bytes of a token of Qwen3-8B: layers, heads, keys and values of 128 numbers of 2 bytes."""


def _architecture(name: str):
    return load_architecture(PolicyConfig(hub_id=name))


@pytest.mark.parametrize(("ranks", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_a_request_takes_whole_blocks_of_16_tokens_and_an_empty_one(ranks, heads):
    request, token = cache_bytes(_architecture("Qwen/Qwen3-8B"), 4081, ranks=ranks, number=2, state=0)
    assert token == QWEN * heads // 8 and request == (256 + 1) * 16 * token


def test_only_layers_with_attention_hold_tokens():
    """Every fourth of 32 layers has attention, of 4 heads of 256; the others hold 3 pages of a state."""
    request, token = cache_bytes(_architecture("Qwen/Qwen3.5-9B"), 16, ranks=1, number=2, state=1000)
    assert token == 8 * 4 * 2 * 256 * 2 and request == 2 * 16 * token + 24 * 3 * 1000


def test_latent_attention_holds_a_vector_for_all_heads():
    config = _architecture("Qwen/Qwen3-8B")
    config.update({"kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert cache_bytes(config, 16, ranks=4, number=2, state=0)[1] == 36 * (512 + 64) * 2


def test_the_profile_is_the_larger_of_a_forward_and_sampling():
    """16,384 tokens of 4 x 4,096 + 3 x 12,288 numbers, or 18 bytes of each of 151,936 logits a sequence."""
    config = _architecture("Qwen/Qwen3-8B")
    assert profile_bytes(config, 512, ranks=1) == 16384 * 2 * (16384 + 36864) + GIB
    assert profile_bytes(config, 512, ranks=4, tokens=8192) == 512 * 151936 * 18 + GIB
    assert profile_bytes(config, 1024, ranks=1) == 1024 * 151936 * 18 + GIB
    experts = _architecture("openai/gpt-oss-20b")  # 4 of 2,880 a token
    assert profile_bytes(experts, 1, ranks=2) == 16384 * 2 * (4 * 2880 + 4 * (3 * 2880 // 2 + 2880)) + GIB


@pytest.mark.parametrize(
    ("awake", "update", "sleeps", "share"),
    [(20, 90, True, 0.7), (40, 90, True, 0.55), (40, 70, False, 0.25), (40.4, 0, True, 0.54), (99, 0, True, 0.05)],
)
def test_the_share_is_what_the_trainer_leaves(awake, update, sleeps, share):
    parts = [
        MemoryPart("held", "", {"scoring": int(awake * GIB)}),
        MemoryPart("gradients", "", {"layers": int(update * GIB)}),
    ]
    assert free_share(parts, 100 * GIB, sleeps=sleeps) == share
    assert free_share(parts, None, sleeps=sleeps) == 0.7


def test_no_more_sequences_than_are_asked_for():
    assert [sequences_at_once(asked) for asked in (0, 256, 4096)] == [1, 256, 1024]


def _room(**changes) -> EngineRoom:
    """Qwen3-4B-2507 at all its positions: 36 GiB of cache, and 36 - 7.5 - 3 of its share."""
    given = {"share": 0.45, "sequences": 256, "length": 262_144, "device": 80 * GIB}
    sizes = {"weights": int(7.5 * GIB), "profile": 3 * GIB, "request": 36 * GIB, "token": QWEN}
    return EngineRoom(**{**given, **sizes, **changes})


def test_vllm_starts_if_its_longest_request_fits_behind_weights_and_profile():
    assert _room().available == int(25.5 * GIB) and not _room().fits
    assert _room(request=int(25.5 * GIB)).fits and not _room(request=int(25.5 * GIB) + 1).fits
    assert _room(device=None).available is None and _room(device=None).fits
    given = _room(cache=30 * GIB)
    assert given.available == 30 * GIB and not given.fits
    assert given.changes().startswith("raise rollout.kv_cache_gib; lower rollout.max_model_len")
    assert _room(planned=True).changes().startswith("leave it more memory, with more trainer.devices and")


def test_what_does_not_start_says_what_to_change():
    plan = MemoryPlan((), Capacity(80 * GIB, "preflight.device_gib"), engine=_room())
    assert not plan.fits and plan.has_room
    with pytest.raises(MemoryPlanError) as caught:
        check_memory(plan)
    assert str(caught.value).startswith(
        "memory: vLLM will not start. It needs weights 7.5, profile 3.0, cache of one request of 262144 tokens 36.0 "
        "GiB, within rollout.gpu_memory_utilization=0.45 of 80.0 GiB. Change: raise rollout.gpu_memory_utilization or "
        "rollout.tensor_parallel_size; lower rollout.max_model_len"
    )
