"""Kept traces are the traces, and nothing is traced twice but models with code of their own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from src.rollout.engine import SamplingParams
from src.wings.memory import activations
from src.wings.memory.activations import forward_memory, row_bound, row_memory
from src.wings.memory.rollout_parts import sampling_bytes
from src.wings.memory.traces import MemoryTraces
from src.wings.memory.training_parts import ModelTraits, RowShape
from tests.architectures.small import small_config
from tests.conftest import ROOT

SHAPE = RowShape(groups=1, prompt=20, completions=2, completion=9)
FLOAT32 = ModelTraits(torch.float32)


def results(traces: MemoryTraces, architecture):
    return (
        traces.row(architecture, FLOAT32, SHAPE),
        traces.forward(architecture, FLOAT32, SHAPE),
        traces.head(97, 32, FLOAT32, 16, trained=True),
        traces.sampling(4, 97, torch.float32, SamplingParams(top_k=3)),
        traces.counts(architecture, torch.float32, None),
    )


@pytest.fixture(scope="module")
def architecture():
    return AutoConfig.from_pretrained(ROOT / "src/models/tiny")


def test_kept_traces_are_the_traces(architecture, tmp_path: Path, monkeypatch):
    file = tmp_path / "traces.json"
    first = MemoryTraces(file)
    traced = results(first, architecture)
    first.save()
    assert traced[0] == row_memory(architecture, FLOAT32, SHAPE)
    assert traced[1] == traced[0].forward == forward_memory(architecture, FLOAT32, SHAPE)
    assert traced[3] == sampling_bytes(4, 97, torch.float32, SamplingParams(top_k=3))
    for name in ("row_memory", "forward_memory", "head_memory"):
        monkeypatch.setattr(activations, name, lambda *_, **__: pytest.fail("traced again"))
    assert results(MemoryTraces(file), architecture) == traced
    with pytest.raises(pytest.fail.Exception):  # another shape is another trace
        MemoryTraces(file).row(architecture, FLOAT32, RowShape(1, 20, 2, 8))


def test_a_model_with_code_of_its_own_is_traced_each_time(architecture, tmp_path: Path):
    traces = MemoryTraces(tmp_path / "traces.json", trust_remote_code=True)
    traces.forward(architecture, FLOAT32, SHAPE)
    traces.save()
    assert not (tmp_path / "traces.json").exists()


def test_a_model_that_cannot_be_traced_is_bounded_and_says_why_at_each_start(tmp_path: Path, monkeypatch):
    dbrx, file = small_config("dbrx"), tmp_path / "traces.json"  # its experts ask which tokens are theirs
    first = MemoryTraces(file)
    bound = first.row(dbrx, FLOAT32, SHAPE)
    assert bound == row_bound(dbrx, FLOAT32, SHAPE) and first.forward(dbrx, FLOAT32, SHAPE) == bound.forward
    assert first.bounded == ["DynamicOutputShapeException: aten.nonzero.default"]
    first.save()
    monkeypatch.setattr(activations, "row_memory", lambda *_: pytest.fail("traced again"))
    second = MemoryTraces(file)
    assert second.row(dbrx, FLOAT32, SHAPE) == bound and second.bounded == first.bounded
