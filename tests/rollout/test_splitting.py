"""An engine that runs out of memory or fails: smaller batches, the weights again, and the same completions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.config.guard import Ways
from src.rollout.engine import Completion, SamplingParams
from src.rollout.native.engine import NativeEngine
from src.rollout.splitting import SplittingEngine
from src.train import train
from src.training import run as program
from tests.conftest import train_config
from tests.distributed.scripted_engine import ScriptedEngine
from tests.training.test_step_guard import SETTINGS


class SmallEngine(ScriptedEngine):
    """Room for so many completions; notes how many it was asked for."""

    def __init__(self, room: int, full: Exception = torch.OutOfMemoryError("simulated")) -> None:  # noqa: B008
        self.room, self.full = room, full
        self.asked: list[int] = []

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked.append(len(prompts) * params.n)
        if self.asked[-1] > self.room:
            raise self.full
        return super().generate(prompts, params, seeds)


def ids(sampled: list[list[Completion]]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completions in sampled for completion in completions]


def test_smaller_batches_give_the_same_completions_and_stay_small(caplog: pytest.LogCaptureFixture) -> None:
    """Seven prompts of 2: 14, then 6, 6 and 2. The next call begins with 6."""
    prompts, params = [torch.tensor([1, 2])] * 7, SamplingParams(n=2, max_new_tokens=9)
    seeds = list(range(7))
    small = SmallEngine(room=6)
    engine = SplittingEngine(small)
    expected = ScriptedEngine().generate(prompts, params, seeds)
    assert ids(engine.generate(prompts, params, seeds)) == ids(expected)
    assert small.asked == [14, 6, 6, 2] and engine.max_completions == 6
    assert ids(engine.generate(prompts[:4], params, seeds[:4])) == ids(expected[:4])
    assert small.asked[4:] == [6, 2]
    assert len([record for record in caplog.records if "Out of memory while sampling" in record.message]) == 1
    assert engine.generate([], params, []) == []


def test_memory_that_runs_out_below_pytorchs_allocator_is_that_too() -> None:
    prompts, params, seeds = [torch.tensor([1, 2])] * 4, SamplingParams(), list(range(4))
    small = SmallEngine(2, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    assert ids(SplittingEngine(small).generate(prompts, params, seeds)) == ids(
        ScriptedEngine().generate(prompts, params, seeds)
    )
    assert small.asked == [4, 2, 2]
    broken = SmallEngine(2, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        SplittingEngine(broken).generate(prompts, params, seeds)
    assert broken.asked == [4]


def test_what_cannot_be_smaller_propagates() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        SplittingEngine(SmallEngine(room=1)).generate([torch.tensor([1])], SamplingParams(n=2), [0])
    together = SmallEngine(room=1)
    together.ranks_per_engine = 2  # all ranks of an engine call it equally often
    with pytest.raises(torch.OutOfMemoryError):
        SplittingEngine(together).generate([torch.tensor([1])] * 4, SamplingParams(), [0] * 4)
    assert together.asked == [4]


class Failing:
    """Patches the native engine's `generate` to fail at some of its calls, counted from 0."""

    def __init__(self, patch: pytest.MonkeyPatch, at: set[int], error: Exception) -> None:
        self.calls = 0
        original = NativeEngine.generate

        def generate(engine: NativeEngine, *args: Any) -> Any:
            self.calls += 1
            if self.calls - 1 in at:
                raise error
            return original(engine, *args)

        patch.setattr(NativeEngine, "generate", generate)


def run(folder: Path, policy: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    steps = ("updates.rollout_steps=2", "trainer.val_check_interval=2", "data.val_splits=[val]")
    train(train_config(folder, *SETTINGS, f"policy.path={policy}", *steps))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison at the start would meet the injected faults first."""
    monkeypatch.setattr(program, "find_ways", lambda *_: Ways("packed", "shared"))
    monkeypatch.setattr(program, "check_policy_and_engine", lambda *_: None)


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_a_fault_of_the_engine_costs_nothing_but_time(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls 0 and 2 fail: the first of each rollout step (call 1 and 3 are the second tries)."""
    expected = run(tmp_path / "whole", random_policy)
    Failing(monkeypatch, {0, 2}, ConnectionError("injected"))
    found = run(tmp_path / "faulty", random_policy)
    faults = [line for line in found if line["event"] == "engine_fault"]
    assert [line["rollout_step"] for line in faults] == [0, 1]
    assert faults[0]["error"] == "ConnectionError: injected"
    assert timeless([line for line in found if line["event"] != "engine_fault"]) == timeless(expected)


@pytest.mark.parametrize(
    ("at", "error", "calls"),
    [({0, 1}, RuntimeError("injected twice"), 2), ({0}, ValueError("a wrong request"), 1)],
    ids=["twice", "wrong"],
)
def test_a_second_fault_and_a_wrong_request_propagate(
    at: set[int], error: Exception, calls: int, random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, at, error)
    with pytest.raises(type(error), match=str(error)):
        run(tmp_path / "run", random_policy)
    assert failing.calls == calls
