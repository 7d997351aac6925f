"""Weights on disk, and the engine with a server that forgets, refuses, or is not there. A real one: tests/vllm."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.server import (
    ServerError,
    ServerLostError,
    VllmServerEngine,
    WeightsFolder,
)
from tests.models.reference import tiny_model
from tests.rollout.vllm.fake_server import FakeServer

PROMPTS = [torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
SAMPLED = SamplingParams(n=2, max_new_tokens=3)
WEIGHTS = [("weight", torch.zeros(2))]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def connect(url: str, folder: Path, **settings: Any) -> VllmServerEngine:
    source = EngineSource(tiny_model("llama"), "some/model", longest=900)
    return VllmServerEngine(source, url=url, weights_dir=folder, **({"timeout_s": 30.0} | settings))


def test_completions_carry_what_the_server_sent(server: FakeServer, tmp_path: Path) -> None:
    engine = connect(server.url, tmp_path)
    assert engine.weights_version == -1
    engine.update_weights(WEIGHTS, 4)
    assert server.loaded == [server.version] == [str(tmp_path / "version_4")]
    first, second = engine.generate(PROMPTS, SAMPLED, [0, 1])
    assert [c.token_ids.tolist() for c in (*first, *second)] == [[3] * 3] * 2 + [[5] * 3] * 2
    assert first[0].logprobs.tolist() == [-0.5] * 3
    assert (first[0].finish_reason, first[0].weights_version) == ("length", 4)
    (greedy,) = engine.generate(PROMPTS[:1], SamplingParams(n=3, temperature=0, max_new_tokens=1), [0])
    assert len(greedy) == 3
    assert engine.generate([], SAMPLED, []) == []


def test_what_was_sampled_from_lost_weights_is_asked_again(server: FakeServer, tmp_path: Path) -> None:
    engine = connect(server.url, tmp_path, max_connections=1)
    engine.update_weights(WEIGHTS, 4)
    server.lose_weights_at = 2
    engine.generate(PROMPTS, SAMPLED, [0, 1])
    assert server.requests == 3
    assert server.loaded == [str(tmp_path / "version_4")] * 2


def test_a_server_that_keeps_losing_them_is_an_error(server: FakeServer, tmp_path: Path) -> None:
    engine = connect(server.url, tmp_path)
    engine.update_weights(WEIGHTS, 4)
    server.lose_weights_at = -1
    with pytest.raises(ServerError, match=r"in 3 attempts all came from others\. Does another run use this server"):
        engine.generate(PROMPTS, SAMPLED, [0, 1])


def test_a_server_that_comes_back_gets_the_weights(
    server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect(server.url, tmp_path)
    engine.update_weights(WEIGHTS, 4)
    port = server.server_address[1]
    server.stop()
    started: list[FakeServer] = []

    def start() -> None:
        time.sleep(1)
        started.append(FakeServer(port))

    thread = threading.Thread(target=start)
    thread.start()
    with caplog.at_level(logging.WARNING):
        engine.generate(PROMPTS, SAMPLED, [0, 1])
    thread.join()
    assert started[0].loaded == [str(tmp_path / "version_4")]
    assert "Waiting for it to come back" in caplog.text
    assert "found 'default' (a restarted server?)" in caplog.text
    started[0].stop()


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    engine = connect("http://127.0.0.1:9", tmp_path, timeout_s=0.8)
    message = (
        r"http://127\.0\.0\.1:9: GET /server_info got no answer \(ConnectError.*Tried \d times.*timeout_s=0\.8.*"
        r"VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 vllm serve some/model --tokens-only --dtype float32 "
        r"--logprobs-mode processed_logprobs --load-format dummy --max-model-len 900"
    )
    with pytest.raises(ServerLostError, match=message):
        engine.update_weights(WEIGHTS, 0)
    assert engine.weights_version == -1


def test_a_connection_that_breaks_is_tried_again_and_a_server_that_always_breaks_it_is_an_error(
    server: FakeServer, tmp_path: Path
) -> None:
    engine = connect(server.url, tmp_path)
    server.broken = ("/collective_rpc", 2)
    engine.update_weights(WEIGHTS, 0)
    server.broken = ("/collective_rpc", 10)
    with pytest.raises(ServerError, match=r"was broken off 3 times .* but the server lives.*could not load"):
        engine.update_weights(WEIGHTS, 1)
    assert engine.weights_version == 0


def test_a_server_that_fails_and_lives_is_not_taken_for_a_dead_one(server: FakeServer, tmp_path: Path) -> None:
    engine = connect(server.url, tmp_path)
    server.failing = "/collective_rpc"
    with pytest.raises(ServerError, match=r"was answered with 500: .*failed.*could not load"):
        engine.update_weights(WEIGHTS, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dtype", "torch.bfloat16", r"with dtype torch\.float32, found torch\.bfloat16\. Start it with: VLLM_"),
        ("logprobs_mode", "raw_logprobs", "with logprobs_mode processed_logprobs, found raw_logprobs"),
    ],
)
def test_another_server_than_needed(server: FakeServer, tmp_path: Path, name: str, value: str, message: str) -> None:
    server.settings[name] = value
    with pytest.raises(ServerError, match=message):
        connect(server.url, tmp_path).update_weights(WEIGHTS, 0)


def test_too_short_a_context_is_refused_before_anything_is_sampled(server: FakeServer, tmp_path: Path) -> None:
    engine = connect(server.url, tmp_path)
    engine.update_weights(WEIGHTS, 0)
    with pytest.raises(ValueError, match="takes 64 in all"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=62), [0, 1])
    assert server.requests == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "gpu7:8000"}, r"rollout\.url: expected http://HOST:PORT, found 'gpu7:8000'"),
        ({"timeout_s": 0}, r"rollout\.timeout_s: expected above 0"),
        ({"logprobs_mode": "logits"}, r"rollout\.logprobs_mode"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect(settings.pop("url", "http://host:1"), tmp_path, **settings)


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.iterdir()) for name, tensor in load_file(file).items()}


def test_shards_hold_all_tensors_in_the_given_type(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path / "new", torch.bfloat16, shard_bytes=100)
    embeddings = torch.randn(4, 8)
    named = {"embed": embeddings, "norm": torch.ones(8), "big": torch.randn(30, 8).T, "lm_head": embeddings}
    path = folder.write(named.items(), 2)
    assert path == folder.path(2)
    # 64 + 16 bytes, then 480 alone, then 64
    assert [sorted(load_file(file)) for file in sorted(path.iterdir())] == [["embed", "norm"], ["big"], ["lm_head"]]
    found = read(path)
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in named.items())


def test_a_version_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    folder = WeightsFolder(tmp_path, torch.float32, shard_bytes=10)
    folder.write([("a", torch.zeros(4))], 1)

    def broken():
        yield "a", torch.ones(4)
        yield "b", torch.ones(4)
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        folder.write(broken(), 2)
    assert not folder.path(2).exists()
    folder.write([("a", torch.ones(4))], 2)
    folder.write([("a", torch.full((4,), 3.0))], 2)
    assert read(folder.path(2))["a"].tolist() == [3.0] * 4
    folder.keep_only(2)
    assert [path.name for path in tmp_path.iterdir()] == ["version_2"]
