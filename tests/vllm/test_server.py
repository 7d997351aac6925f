"""The server engine against a real vLLM server: weights, versions, a killed server, a lost one."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from src.models.loading.lora import merged_named_tensors
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.server import ServerError, ServerLostError, VllmServerEngine
from tests.vllm.scoring import gap, ids, load, nudge, parted, prompts
from tests.vllm.server import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = prompts(7, 60, 33)
SAMPLED = SamplingParams(n=4, max_new_tokens=24)


@pytest.fixture(scope="module")
def model(random_policy: Path) -> PreTrainedModel:
    return load(random_policy)


@pytest.fixture(scope="module")
def server(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(random_policy, tmp_path_factory.mktemp("server") / "log.txt")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def connect(server: VllmServer, model: PreTrainedModel, folder: Path, **settings: Any) -> VllmServerEngine:
    source = EngineSource(model, str(folder / "model"), settings.pop("dtype", torch.float32))
    settings = {"timeout_s": 900, "shard_gib": 1e-4} | settings
    return VllmServerEngine(source, url=server.url, weights_dir=folder / "weights", **settings)


def test_log_probabilities_are_the_trainers_after_every_update(
    server: VllmServer, model: PreTrainedModel, tmp_path: Path
) -> None:
    engine = connect(server, model, tmp_path)
    with pytest.raises(RuntimeError, match="Call update_weights first"):
        engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
    for version in (3, 4):
        nudge(model, seed=version)
        engine.update_weights(merged_named_tensors(model), version)
        assert [path.name for path in (tmp_path / "weights").iterdir()] == [f"version_{version}"]
        for params in (SAMPLED, SamplingParams(max_new_tokens=24, temperature=0.7), SamplingParams(n=2, temperature=0)):
            sampled = engine.generate(PROMPTS, params, [1, 2, 3])
            assert gap(model, PROMPTS, sampled, params.temperature) <= 1e-5
            assert [len(group) for group in sampled] == [params.n] * 3
            assert {completion.weights_version for group in sampled for completion in group} == {version}
    again = engine.generate(PROMPTS[::-1], SAMPLED, [3, 2, 1])
    assert parted(ids(again)[::-1], ids(engine.generate(PROMPTS, SAMPLED, [1, 2, 3]))) <= 2
    engine.close()


def test_a_server_that_another_run_updates_is_noticed(
    server: VllmServer, model: PreTrainedModel, tmp_path: Path
) -> None:
    engine, other = connect(server, model, tmp_path / "one"), connect(server, model, tmp_path / "two")
    engine.update_weights(merged_named_tensors(model), 0)
    expected = ids(engine.generate(PROMPTS, SAMPLED, [1, 2, 3]))
    nudge(model, seed=5)
    other.update_weights(merged_named_tensors(model), 0)
    assert parted(ids(other.generate(PROMPTS, SAMPLED, [1, 2, 3])), expected) > 2
    assert parted(ids(engine.generate(PROMPTS, SAMPLED, [1, 2, 3])), expected) <= 2


def test_the_wrong_server_is_refused(server: VllmServer, model: PreTrainedModel, tmp_path: Path) -> None:
    named = list(merged_named_tensors(model))
    with pytest.raises(ServerError, match=r"expected a server with dtype torch.bfloat16, found torch.float32"):
        connect(server, model, tmp_path, dtype=torch.bfloat16).update_weights(named, 0)
    with pytest.raises(ServerError, match=r"logprobs_mode raw_logprobs, found processed_logprobs\. Start it with: "):
        connect(server, model, tmp_path, logprobs_mode="raw_logprobs").update_weights(named, 0)
    engine = connect(server, model, tmp_path)
    engine.update_weights(named, 1)
    assert gap(model, PROMPTS, engine.generate(PROMPTS, SAMPLED, [1, 2, 3])) <= 1e-5
    with pytest.raises(ValueError, match="takes 512 in all"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=500), [1, 2, 3])


def test_a_server_killed_and_started_again_gets_its_weights_back(
    server: VllmServer, model: PreTrainedModel, tmp_path: Path
) -> None:
    engine = connect(server, model, tmp_path, max_connections=8)
    engine.update_weights(merged_named_tensors(model), 7)
    many, seeds = PROMPTS * 20, list(range(60))
    expected = ids(engine.generate(many, SAMPLED, seeds))

    def strike() -> None:
        time.sleep(0.5)
        server.kill()
        server.start(wait=False)

    thread = threading.Thread(target=strike)
    thread.start()
    sampled = engine.generate(many, SAMPLED, seeds)
    thread.join()
    assert parted(ids(sampled), expected) <= 2
    assert gap(model, many, sampled) <= 1e-5
    assert {completion.weights_version for group in sampled for completion in group} == {7}
    engine.close()


def test_a_server_that_is_gone_ends_the_run_with_what_to_do(
    server: VllmServer, model: PreTrainedModel, tmp_path: Path
) -> None:
    engine = connect(server, model, tmp_path, timeout_s=3)
    server.wait()
    engine.update_weights(merged_named_tensors(model), 0)
    other = [(name, tensor.repeat(2)) for name, tensor in merged_named_tensors(model) if tensor.ndim == 1]
    with pytest.raises(ServerError, match="serve the architecture of"):
        engine.update_weights(other, 1)
    server.kill()
    with pytest.raises(
        ServerLostError, match=r"Tried \d+ times.*timeout_s=3.*VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 vllm serve"
    ):
        engine.generate(PROMPTS, SAMPLED, [1, 2, 3])
