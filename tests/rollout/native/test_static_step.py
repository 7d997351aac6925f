"""The step of fixed shapes, which CUDA graphs replay, against the exact one; capturing itself needs a GPU."""

from itertools import chain

import pytest
import torch

from src.rollout.engine import SamplingParams
from src.rollout.native import engine as native
from src.rollout.native.engine import NativeEngine
from src.rollout.native.static_step import StaticStep
from tests.rollout.native.test_engine import STOPS, TOLERANCE, assert_same_completions, build, ragged, same_tokens


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("n", [1, 3])
def test_fixed_shapes_give_the_same_completions(kind, n, monkeypatch):
    prompts, seeds = ragged(9, 30, 2, 17, 12), [5, 6, 7, 8, 9]
    params = SamplingParams(n=n, max_new_tokens=40, stop_token_ids=STOPS)
    engine = NativeEngine(model := build(kind), max_sequences=2 * n, max_batch_tokens=1000)
    exact = engine.generate(prompts, params, seeds)
    monkeypatch.setattr(native, "uses_graphs", lambda model, wanted: True)
    monkeypatch.setattr(native, "StaticStep", lambda forward, n, capture: StaticStep(forward, n, capture=False))
    fixed = engine.generate(prompts, params, seeds)
    assert_same_completions(fixed, exact, model, prompts, params, seeds)
    for expected, found in zip(chain(*exact), chain(*fixed), strict=True):
        same = same_tokens(found, expected)
        torch.testing.assert_close(found.logprobs[:same], expected.logprobs[:same], atol=TOLERANCE, rtol=0)


def test_graphs_without_a_gpu_are_an_error():
    with pytest.raises(ValueError, match=r"rollout\.cuda_graphs=true: expected a model on CUDA, found it on cpu"):
        NativeEngine(build("llama"), cuda_graphs=True).generate(ragged(3), SamplingParams(max_new_tokens=2), [0])
