"""Architectures without weights: the published numbers of weights, offline, and where a config comes from."""

import json

import pytest
import torch
from transformers import AutoConfig

from src.models.loading.architecture import KNOWN, count_parameters, empty_model, load_architecture
from src.models.loading.loading import PolicyConfig, load_model
from src.models.loading.lora import LoraSettings
from tests.architectures.small import small_config
from tests.conftest import ROOT, train_config


@pytest.mark.parametrize(
    ("hub_id", "total", "head"),
    [  # the model cards' numbers, in billions; tied heads count once
        ("Qwen/Qwen3-1.7B", 1.721, 151936 * 2048),
        ("Qwen/Qwen3-4B", 4.022, 151936 * 2560),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.022, 151936 * 2560),
        ("Qwen/Qwen3-4B-Thinking-2507", 4.022, 151936 * 2560),
        ("Qwen/Qwen3-8B", 8.191, 151936 * 4096),
        ("Qwen/Qwen3-14B", 14.768, 151936 * 5120),
        ("Qwen/Qwen3-32B", 32.762, 151936 * 5120),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.213, 128256 * 3072),
    ],
)
def test_published_models_have_their_published_sizes(hub_id, total, head):
    counts = count_parameters(empty_model(load_architecture(PolicyConfig(hub_id=hub_id)), torch.bfloat16))
    assert round(counts.total / 1e9, 3) == total
    assert counts.head == counts.largest == head
    assert counts.trained == counts.total == counts.root + counts.layers * counts.layer


def test_every_hub_model_of_the_policies_is_known_offline():
    names = [path.stem for path in (ROOT / "configs/policy").glob("*.yaml")]
    ids = {train_config(ROOT, f"policy={name}").policy.get("hub_id") for name in names} - {None}
    assert {hub_id.partition("/")[2] for hub_id in ids} <= {path.stem for path in KNOWN.glob("*.json")}


def test_a_cached_config_wins(tmp_path, monkeypatch):
    def cached(source, **kwargs):
        assert kwargs["local_files_only"]
        return AutoConfig.for_model("qwen3", num_hidden_layers=3)

    monkeypatch.setattr("src.models.loading.architecture.AutoConfig.from_pretrained", cached)
    assert load_architecture(PolicyConfig(hub_id="Qwen/Qwen3-8B")).num_hidden_layers == 3


def test_an_unknown_hub_model_says_what_is_known(monkeypatch):
    def unreachable(source, **_):
        raise OSError("no network\nand more")

    monkeypatch.setattr("src.models.loading.architecture.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(OSError, match=r"'me/mine' is not cached, .*'Qwen3-8B'.*: no network Set policy\.path"):
        load_architecture(PolicyConfig(hub_id="me/mine"))


def test_a_folder_needs_no_weights(random_policy, tmp_path):
    (tmp_path / "config.json").write_text((random_policy / "config.json").read_text())
    settings = PolicyConfig(path=tmp_path, dtype="float32")
    counts = count_parameters(empty_model(load_architecture(settings), torch.float32))
    model = load_model(PolicyConfig(path=random_policy, dtype="float32"))
    assert counts == count_parameters(model) and counts.tied == model.config.tie_word_embeddings
    with pytest.raises(FileNotFoundError, match=r"policy\.path: the folder .* does not exist"):
        load_architecture(PolicyConfig(path=tmp_path / "none"))


def test_adapters_are_counted_as_they_are_loaded(random_policy):
    settings = PolicyConfig(path=random_policy, dtype="float32", lora=LoraSettings(rank=4))
    counts = count_parameters(empty_model(load_architecture(settings), torch.float32, settings.lora))
    assert counts == count_parameters(load_model(settings))
    architecture = json.loads((random_policy / "config.json").read_text())
    width, hidden = architecture["hidden_size"], architecture["intermediate_size"]
    q = architecture["num_attention_heads"] * architecture["head_dim"]
    kv = architecture["num_key_value_heads"] * architecture["head_dim"]
    per_layer = 4 * ((width + q) * 2 + (width + kv) * 2 + (width + hidden) * 3)  # q, o; k, v; gate, up, down
    assert counts.layer_trained == per_layer and counts.trained == counts.layers * per_layer
    assert not counts.head_trained and not counts.embedding_trained


def test_layers_of_several_sizes_are_counted_one_by_one():
    model = empty_model(small_config("lfm2", layer_types=["conv", "full_attention", "conv"]), torch.float32)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    counts = count_parameters(model)
    assert sizes[0] == sizes[2] != sizes[1]
    assert counts.layer == max(sizes) and counts.missing == 3 * max(sizes) - sum(sizes)
    assert counts.root == counts.root_trained == counts.total - sum(sizes)


def test_an_encoder_of_images_is_there_and_not_trained():
    model = empty_model(small_config("gemma3"), torch.float32)
    counts = count_parameters(model)
    tower = sum(p.numel() for name, p in model.named_parameters() if "language_model" not in name)
    assert counts.total - counts.trained == tower > 0
