"""The engine leaves the process as it was, and asks vLLM for what the run needs. Its sampling: tests/vllm."""

import os
import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import VllmEngine, launcher_variables, process_state_kept, vllm_engine
from tests.models.reference import tiny_model


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_states_and_threads_are_put_back() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    with process_state_kept():
        torch.manual_seed(7)
        draw()
        torch.set_num_threads(threads + 1)
        torch.set_num_threads = lambda _: None
    assert draw() == expected
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, setter)


def test_launcher_variables_say_the_rank_and_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("RANK", raising=False)
    with launcher_variables():
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("5", "1")
    assert os.environ["LOCAL_RANK"] == "0"
    assert "RANK" not in os.environ


class FakeLLM:
    """Notes its arguments, how it is put to sleep, and whether autocast is on when it works."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.autocast, self.levels = arguments, [torch.is_autocast_enabled("cpu")], []
        self.model_config = SimpleNamespace(max_model_len=arguments["max_model_len"])

    def generate(self, requests: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        one = SimpleNamespace(index=0, token_ids=[1], logprobs=[{1: SimpleNamespace(logprob=-0.5)}])
        one.finish_reason, one.routed_experts = "stop", None
        return [SimpleNamespace(outputs=[one]) for _ in requests]

    def collective_rpc(self, method: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> list[bool]:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return [True]

    def sleep(self, level: int) -> None:
        self.levels.append(level)

    def wake_up(self, tags: list[str]) -> None: ...

    def reset_prefix_cache(self) -> bool:
        return True


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.LLM, package.SamplingParams = FakeLLM, lambda **fields: fields  # type: ignore[attr-defined]
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    monkeypatch.setattr("src.rollout.vllm.engine.require_vllm", lambda: None)
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)


def made(**settings: Any) -> VllmEngine:
    return vllm_engine(EngineSource(tiny_model("llama"), "some/model", longest=900), **settings)


def started(**settings: Any) -> tuple[VllmEngine, FakeLLM]:
    engine = made(**settings)
    engine.update_weights([], 0)
    return engine, engine._llm


def test_the_length_is_the_runs_unless_it_is_given(fake_vllm: None) -> None:
    engine, llm = started()
    assert (engine.context, llm.arguments["max_num_seqs"], llm.arguments["gpu_memory_utilization"]) == (900, 256, 0.45)
    engine, llm = started(max_model_len=700, max_num_seqs=64, gpu_memory_utilization=0.6)
    assert (engine.context, llm.arguments["max_num_seqs"], llm.arguments["gpu_memory_utilization"]) == (700, 64, 0.6)
    with pytest.raises(ValueError, match="the engine takes 700 in all"):
        engine.generate([torch.ones(600, dtype=torch.long)], SamplingParams(max_new_tokens=101), [0])


def test_vllm_works_outside_autocast_and_reports_no_use(fake_vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine, llm = started()
        engine.generate([torch.tensor([1, 2])], SamplingParams(), [0])
        assert torch.is_autocast_enabled("cpu")
    assert llm.autocast[0] is False and llm.autocast[-1] is False  # while it starts, and while it samples
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    started()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_as_deep_as_it_is_told(fake_vllm: None, monkeypatch: pytest.MonkeyPatch, level: Any) -> None:
    engine, llm = started(sleep_level=level)
    engine.release_memory()
    assert llm.levels == []  # on a CPU it does not
    llm.arguments = engine._arguments["enable_sleep_mode"] = True
    engine.release_memory()
    engine.release_memory()
    assert llm.levels == [level]
