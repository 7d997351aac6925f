"""The in-process engine against the trainer's own log-probabilities."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from src.models.loading.loading import load_model
from src.models.loading.lora import merged_named_tensors
from src.models.loading.policy_config import PolicyConfig
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import VllmEngine, vllm_engine
from tests.models.loading.test_quantization import fp8, rewrite
from tests.vllm.scoring import SMALL_ENGINE, gap, ids, load, nudge, parted, prompts

pytestmark = pytest.mark.vllm

PROMPTS = prompts(7, 60, 33)
SAMPLED = SamplingParams(n=4, max_new_tokens=24)


@pytest.fixture(scope="module")
def model(random_policy: Path) -> PreTrainedModel:
    return load(random_policy)


@pytest.fixture(scope="module")
def engine(random_policy: Path, model: PreTrainedModel) -> Iterator[VllmEngine]:
    engine = vllm_engine(EngineSource(model, str(random_policy)), **SMALL_ENGINE)
    with pytest.raises(RuntimeError, match="has no weights"):
        engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    engine.update_weights(merged_named_tensors(model), 0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    yield engine
    engine.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probabilities_are_the_trainers_after_every_update(
    engine: VllmEngine, model: PreTrainedModel, temperature: float
) -> None:
    params = SamplingParams(n=3, max_new_tokens=24, temperature=temperature)
    before = None
    for _ in range(3):
        version = engine.weights_version + 1
        nudge(model, seed=version)
        engine.update_weights(merged_named_tensors(model), version)
        sampled = engine.generate(PROMPTS, params, [1, 2, 3])
        assert gap(model, PROMPTS, sampled, temperature) <= 1e-5
        assert {completion.weights_version for group in sampled for completion in group} == {version}
        assert ids(sampled) != before  # the prefix cache was dropped and the weights moved
        before = ids(sampled)


def test_seeds_make_completions_whatever_else_is_asked(engine: VllmEngine) -> None:
    first = engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
    assert len({tuple(completion) for completion in ids(first)[0]}) == 4
    other = ids(engine.generate([PROMPTS[2], PROMPTS[0]], SAMPLED, [3, 1]))
    assert parted(other, [ids(first)[2], ids(first)[0]]) <= 2
    assert parted(ids(engine.generate([PROMPTS[0]] * 2, SAMPLED, [2, 1]))[1:], ids(first)[:1]) <= 2
    assert ids(engine.generate([PROMPTS[0]], SAMPLED, [4])) != ids(first)[:1]


def test_random_state_is_the_trainers(engine: VllmEngine) -> None:
    before = torch.get_rng_state()
    engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before)


def test_only_given_stop_tokens_stop(engine: VllmEngine) -> None:
    (free,) = engine.generate(PROMPTS[:1], SAMPLED, [1])
    stop = int(free[0].token_ids[5])
    (stopped,) = engine.generate(PROMPTS[:1], SamplingParams(n=4, max_new_tokens=24, stop_token_ids=(stop,)), [1])
    end = free[0].token_ids.tolist().index(stop) + 1
    assert stopped[0].token_ids.tolist() == free[0].token_ids[:end].tolist()
    assert stopped[0].finish_reason == "stop"
    assert {(len(c.token_ids), c.finish_reason) for c in free} == {(24, "length")}


def test_greedy_completions_are_equal_and_nothing_asked_is_nothing(engine: VllmEngine) -> None:
    (greedy,) = engine.generate(PROMPTS[:1], SamplingParams(n=3, temperature=0, max_new_tokens=8), [0])
    assert ids([greedy])[0] == [greedy[0].token_ids.tolist()] * 3
    assert engine.generate([], SAMPLED, []) == []


def test_what_the_engine_cannot_do_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match=r"rollout\.logprobs_mode=raw_logprobs"):
        engine.generate(PROMPTS, SamplingParams(top_p=0.9), [1, 2, 3])
    with pytest.raises(ValueError, match="takes 512 in all"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=453), [1, 2, 3])


def test_a_head_left_out_shows(engine: VllmEngine, model: PreTrainedModel) -> None:
    """What the probe after every update must catch."""
    nudge(model, seed=99)
    named = ((name, tensor) for name, tensor in merged_named_tensors(model) if name != "lm_head.weight")
    engine.update_weights(named, 100)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SAMPLED, [1, 2, 3])) > 0.1
    engine.update_weights(merged_named_tensors(model), 101)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SAMPLED, [1, 2, 3])) <= 1e-5


def test_an_update_that_fails_leaves_no_engine_to_sample_from(engine: VllmEngine, model: PreTrainedModel) -> None:
    version = engine.weights_version

    def broken():
        yield next(merged_named_tensors(model))
        raise OSError("a shard is gone")

    with pytest.raises(OSError, match="a shard is gone"):
        engine.update_weights(broken(), version + 1)
    assert engine.weights_version == version
    with pytest.raises(RuntimeError, match="no weights"):
        engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
    engine.update_weights(merged_named_tensors(model), version + 1)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SAMPLED, [1, 2, 3])) <= 1e-5


def test_sleep_needs_an_accelerator(random_policy: Path, model: PreTrainedModel) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ValueError, match=r"rollout\.sleep=true: expected an accelerator"):
        vllm_engine(EngineSource(model, str(random_policy)), sleep=True)


def test_the_weights_of_a_quantised_checkpoint_are_plain_in_the_engine_too(random_policy: Path, tmp_path: Path) -> None:
    folder, block = tmp_path / "quantised", 64
    shutil.copytree(random_policy, folder)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    rewrite(folder, lambda name, w: fp8(name, w, block) if name.endswith("proj.weight") else None, settings)
    model = load_model(PolicyConfig(path=folder, dtype="float32"))
    engine = vllm_engine(EngineSource(model, str(folder)), **SMALL_ENGINE)
    engine.update_weights(merged_named_tensors(model), 0)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SAMPLED, [1, 2, 3])) <= 1e-5
    engine.close()
