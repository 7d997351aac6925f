"""Policies of hub models: they are known offline, have the published weights, and in small take a rollout step."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from src.models.loading.architecture import KNOWN, count_parameters, empty_model, load_architecture, model_class
from src.models.loading.cut import cut_config, draw_weights
from src.models.loading.policy_config import PolicyConfig
from src.train import train
from src.wings.exporting.folder import export
from tests.architectures.small import small_config
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config

WEIGHTS = {
    "qwen3_5_4b": 4_539_265_536,
    "qwen3_5_9b": 9_409_813_744,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_30b_a3b_2507": 30_532_122_624,
    "gemma4_e2b": 5_104_297_504,
    "gemma4_e4b": 7_941_100_832,
    "gemma4_12b": 11_959_730_176,
    "gpt_oss_20b": 20_914_757_184,
    "ministral3_3b": 3_849_090_048,
    "ministral3_8b": 8_918_026_240,
    "ministral_8b": 8_019_808_256,
    "smollm3_3b": 3_075_098_624,
    "lfm2_1_2b": 1_170_340_608,
    "lfm2_2_6b": 2_569_272_320,
    "lfm2_5_1_2b": 1_170_340_608,
    "lfm2_5_2_6b": 2_697_198_592,
}
"""As published, but for Qwen3.5's and Gemma 4's: without the weights that predict several tokens at once, and without
those of layers that take their keys from another."""
TRAINED = {
    "qwen3_5_4b": 4_205_751_296,
    "qwen3_5_9b": 8_953_803_264,
    "gemma4_e2b": 4_628_569_344,
    "gemma4_e4b": 7_463_013_376,
    "gemma4_12b": 11_907_350_272,
    "ministral3_3b": 3_429_006_336,
    "ministral3_8b": 8_489_553_920,
}
"""The text decoder's, of those that read images too."""
SMALL_KINDS = {
    "mistral3": "Ministral-3-3B-Instruct-2512-BF16.json",
    "qwen3_5": "Qwen3.5-4B.json",
    "gpt_oss": "gpt-oss-20b.json",
}
"""Types of theirs that are loaded in a way of their own."""


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tokenizer():
    from src.wings.tiny.make import build_tokenizer

    return build_tokenizer(vocab_size=512, examples=300)


def architecture_of(name: str) -> PretrainedConfig:
    policy = train_config(Path(), f"policy={name}").policy
    assert (KNOWN / f"{policy.hub_id.partition('/')[2]}.json").is_file()
    return load_architecture(PolicyConfig(hub_id=policy.hub_id))


def step(architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, float]:
    """Metrics of a rollout step from random weights that are first saved to and loaded from a folder."""
    model = model_class(architecture).from_config(architecture, dtype=torch.float32)
    draw_weights(model)
    export(model, tokenizer, folder / "policy")
    settings = (*SMALL, *HARDLY_VALIDATED, "sampling.n=4", "reward._target_=tests.models.even_reward.EvenReward")
    train(train_config(folder, *settings, f"policy.path={folder / 'policy'}"))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(event for event in events if event["event"] == "rollout_step")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_policys_architecture_is_known_offline_and_has_the_published_weights(name):
    counts = count_parameters(empty_model(architecture_of(name), torch.bfloat16))
    assert (counts.total, counts.trained) == (WEIGHTS[name], TRAINED.get(name, WEIGHTS[name]))


@pytest.mark.parametrize("kind", SMALL_KINDS)
def test_small_models_of_a_type_take_a_step(kind, tokenizer, tmp_path):
    small = small_config(kind, vocab_size=len(tokenizer), max_position_embeddings=2048)
    small.architectures = json.loads((KNOWN / SMALL_KINDS[kind]).read_text())["architectures"]
    metrics = step(small, tokenizer, tmp_path)
    assert metrics["train/sampler_gap_max"] < 1e-4 and metrics["train/grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_policies_in_small_take_a_step(name, tokenizer, tmp_path):
    """One layer of each kind with its own heads, windows and rotations, narrow between layers."""
    small = cut_config(architecture_of(name))
    text = small.get_text_config(decoder=True)
    text.hidden_size = 256
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(text, key):
            setattr(text, key, len(tokenizer))
    metrics = step(small, tokenizer, tmp_path)
    assert metrics["train/sampler_gap_max"] < 1e-4 and metrics["train/grad_norm"] > 0
