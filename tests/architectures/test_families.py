"""A training step and an evaluation on a small random model of each of 25 families, from a folder, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from src.train import train
from src.wings.evaluation.run import evaluate
from tests.architectures.small import small_config, small_model
from tests.conftest import SMALL, eval_config, train_config

QUICK = ("qwen3_moe", "qwen3_5")
FAMILIES = (
    *QUICK,
    *"gemma3 gemma4 gpt_oss ministral mistral smollm3 lfm2 lfm2_moe llama4 qwen3_next falcon_h1 jamba".split(),
    *"granite granitemoehybrid nemotron_h bamba olmo3 exaone4 cohere2 deepseek_v3 deepseek_v4 glm4_moe mixtral".split(),
    *"phi3 gemma2 gemma3n mamba2 minicpm3 starcoder2 nemotron".split(),
)


def model_folder(folder: Path, kind: str, tokenizer: Path, **sizes: int) -> Path:
    """A small random model of the kind, with the tokenizer of another folder."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(folder)
    sizes |= {"vocab_size": len(words), "max_position_embeddings": 8192}
    if hasattr(small_config(kind).get_text_config(), "vocab_size_per_layer_input"):
        sizes["vocab_size_per_layer_input"] = len(words)
    config = small_config(kind, **sizes)
    small_model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES])
def test_a_family_is_trained_and_evaluated(kind: str, random_policy: Path, tmp_path: Path) -> None:
    policy = model_folder(tmp_path / "policy", kind, random_policy)
    run = tmp_path / "run"
    run.mkdir()
    train(train_config(run, *SMALL, f"policy.path={policy}", "sampling.max_new_tokens=24", "sampling.n=2"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["train/sampler_gap_max"] for line in lines if "train/sampler_gap_max" in line]
    assert gaps and max(gaps) < 1e-4
    results = evaluate(
        eval_config(
            tmp_path / "eval",
            f"model={run}",
            "benchmark=[synthetic]",
            "device=cpu",
            "generation.max_new_tokens=8",
            "benchmark.synthetic.size=2",
        )
    )
    assert results
