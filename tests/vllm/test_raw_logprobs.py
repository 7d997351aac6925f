"""The in-process engine with `logprobs_mode=raw_logprobs`: nucleus sampling at temperature 1."""

from pathlib import Path

import pytest

from src.models.loading.lora import merged_named_tensors
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import vllm_engine
from tests.vllm.scoring import SMALL_ENGINE, gap, load, prompts

pytestmark = pytest.mark.vllm


def test_log_probabilities_are_those_before_the_cut(random_policy: Path) -> None:
    model, asked = load(random_policy), prompts(7, 60)
    engine = vllm_engine(EngineSource(model, str(random_policy)), logprobs_mode="raw_logprobs", **SMALL_ENGINE)
    engine.update_weights(merged_named_tensors(model), 0)
    for params in (
        SamplingParams(n=4, max_new_tokens=24, top_p=0.6),
        SamplingParams(n=4, max_new_tokens=24, top_k=20),
        SamplingParams(max_new_tokens=24, temperature=0),
    ):
        assert gap(model, asked, engine.generate(asked, params, [1, 2])) <= 1e-5
    with pytest.raises(ValueError, match=r"rollout\.logprobs_mode=processed_logprobs"):
        engine.generate(asked, SamplingParams(temperature=0.7), [1, 2])
    engine.close()
