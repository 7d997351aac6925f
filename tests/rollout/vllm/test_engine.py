"""The engine leaves the process as it was: random numbers, threads, environment. Its sampling: tests/vllm."""

import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist

from src.rollout.vllm.engine import launcher_variables, process_state_kept


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
