"""Folders that appear whole or not at all, how to sample from them, and their cards."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from src.models.loading.loading import PolicyConfig, load_model, load_tokenizer
from src.protocol.formats.rest import parse
from src.rollout.engine import SamplingParams
from src.wings.exporting import run as exporting
from src.wings.exporting.folder import (
    ExportError,
    gathered_weights,
    generation_config,
    new_folder,
    save_folder,
    write_export,
)
from src.wings.exporting.model_card import CardFacts, model_card
from tests.architectures.small import small_config
from tests.conftest import ROOT

TINY = PolicyConfig(path=ROOT / "src/models/tiny", dtype="float32")


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a/model"
    with new_folder(target) as partial:
        (partial / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1" and list(target.parent.iterdir()) == [target]
    with (
        pytest.raises(ExportError, match=r"model': expected a new folder, found one with other files"),
        new_folder(target),
    ):
        raise AssertionError
    with new_folder(target, replace=True) as partial:
        (partial / "x").write_text("2")
        assert (target / "x").read_text() == "1"
    assert (target / "x").read_text() == "2" and list(target.parent.iterdir()) == [target]
    with pytest.raises(RuntimeError), new_folder(target, replace=True) as partial:
        raise RuntimeError
    assert (target / "x").read_text() == "2" and list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10, 10**6))
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    with pytest.raises(ExportError, match=r"out' needs 0\.1 GB and its disk has 0\.0 GB left\. Make room"):
        write_export(
            model, tokenizer, gathered_weights(model), tmp_path / "out", card="", generation=GenerationConfig()
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_are_gathered_by_one_and_converted():
    model = load_model(TINY)
    assert gathered_weights(model, keep=False) == {}
    weights = gathered_weights(model, dtype=torch.bfloat16)
    assert "lm_head.weight" not in weights and {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert model.dtype == torch.float32


@pytest.mark.parametrize(("whole", "text"), [(True, True), (False, True), (True, False), (False, None)])
def test_the_head_is_left_out_where_it_is_the_embeddings(whole, text, tmp_path):
    """Which transformers decides by the whole config: that of the text may say otherwise, or nothing (Qwen3-VL)."""
    config = small_config("qwen3_vl")
    config.tie_word_embeddings = whole
    if text is not None:
        config.text_config.tie_word_embeddings = text
    model = AutoModelForImageTextToText.from_config(config)
    assert ("lm_head.weight" in gathered_weights(model)) == (not whole)
    save_folder(model, load_tokenizer(TINY), gathered_weights(model), tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_folder_that_would_be_read_otherwise_is_not_left(tmp_path, monkeypatch):
    """As if a config said that the head is the embeddings, and as if a tensor had been mixed up on the way."""
    model = AutoModelForCausalLM.from_config(small_config("qwen3"))
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    weights = gathered_weights(model)
    swapped = weights | {"model.norm.weight": torch.full_like(weights["model.norm.weight"], 2.0)}
    save = type(model).save_pretrained
    for change, name in (
        (lambda given: swapped, r"model\.norm\.weight"),
        (lambda given: {k: v for k, v in given.items() if k != "lm_head.weight"}, r"lm_head\.weight"),
    ):
        monkeypatch.setattr(
            type(model),
            "save_pretrained",
            lambda self, folder, state_dict, change=change, **k: save(self, folder, state_dict=change(state_dict), **k),
        )
        with pytest.raises(ExportError, match=rf"does not hold the trained weights: {name} would be read otherwise"):
            write_export(model, load_tokenizer(TINY), weights, tmp_path / "out", card="", generation=GenerationConfig())
        assert list(tmp_path.iterdir()) == []


def test_big_models_are_written_in_several_files(tmp_path, monkeypatch):
    save = type(load_model(TINY)).save_pretrained
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained",
                        lambda self, *a, **k: save(self, *a, **{**k, "max_shard_size": "1MB"}))  # fmt: skip
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    folder = tmp_path / "out"
    write_export(model, tokenizer, gathered_weights(model), folder, card="", generation=GenerationConfig())
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_sampling_and_stops():
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    nucleus = generation_config(model, tokenizer, (2, 7), SamplingParams(temperature=0.7, top_p=0.9))
    assert (nucleus.do_sample, nucleus.temperature, nucleus.top_p, nucleus.top_k) == (True, 0.7, 0.9, 0)
    assert (nucleus.eos_token_id, nucleus.pad_token_id) == ([2, 7], 0)
    assert generation_config(model, tokenizer, (2,), SamplingParams(temperature=0.0)).do_sample is False
    model.generation_config.temperature = 0.3
    own = generation_config(model, tokenizer, (2,))
    assert (own.temperature, own.eos_token_id) == (0.3, 2) and own is not model.generation_config


def test_a_card_without_training_and_one_from_the_hub():
    plain = model_card(CardFacts("x", {"policy": {"path": "/a/b/mine"}, "prompt": {}}))
    assert "mine, written anew" in plain
    assert not any(absent in plain for absent in ("base_model", "## Method", "/a/b"))
    policy = {"hub_id": "Qwen/Qwen3-8B", "path": None, "weights": "pretrained", "lora": None}
    prompt = {"layout": "published", "chat_template_kwargs": {"enable_thinking": True}}
    hub = model_card(CardFacts("x", {"policy": policy, "prompt": prompt}))
    head = yaml.safe_load(hub.split("---\n")[1])
    assert (head["base_model"], head["library_name"], "license" in head) == ("Qwen/Qwen3-8B", "transformers", False)
    assert "add_generation_prompt=True, enable_thinking=True)" in hub and '{"enable_thinking": true}' in hub
    assert "1. Name: get_weather" in hub and "**Output Format**" in hub
    assert "Do not pass `tools=`" in hub and "src.protocol.formats.rest.parse(answer).calls" in hub
    random = model_card(CardFacts("x", {"policy": {**policy, "weights": "random"}, "prompt": {}}))
    assert "base_model" not in yaml.safe_load(random.split("---\n")[1]) and "with random weights" in random


def test_a_folder_is_pushed_to_the_hub(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **settings):
            calls.append((name, settings))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, folder_path))
            if repo_id == "me/refused":
                raise OSError("403 Forbidden\nmore")

    monkeypatch.setattr(exporting, "HfApi", Hub)
    exporting.push_to_hub(tmp_path, "me/policy")
    assert calls == [("me/policy", {"private": True, "exist_ok": True}), ("me/policy", tmp_path)]
    with pytest.raises(
        ExportError, match=r"push_to_hub=me/refused: 403 Forbidden\. The folder .* is complete: push it"
    ):
        exporting.push_to_hub(tmp_path, "me/refused")


def test_a_native_policys_card_serves_its_calls():
    """A thought is read where the template lets the policy think; settings of the template are the server's."""
    config = {"policy": {"path": "mine"}, "prompt": {"layout": "native"}}
    card = model_card(CardFacts("x", config, format="hermes"))
    options = "--served-model-name policy --enable-auto-tool-choice --tool-call-parser hermes"
    assert f"vllm serve FOLDER {options} --reasoning-parser qwen3\n" in card and "tools=tools" in card
    assert "Do not pass `tools=`" not in card and '"type": "string"' in card
    assert f"vllm serve FOLDER {options}\n" in model_card(CardFacts("x", config, format="hermes", thinks=False))
    config["prompt"]["chat_template_kwargs"] = {"enable_thinking": False}
    card = model_card(CardFacts("x", config, format="hermes"))
    assert f"{options} --default-chat-template-kwargs '{{\"enable_thinking\": false}}'\n" in card


def test_the_cards_example_runs(tmp_path):
    """The code on the card, on the folder that it lies in."""
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    config = {"policy": {"path": "tiny"}, "prompt": {"layout": "compact", "chat_template_kwargs": {}}}
    card = model_card(CardFacts("tiny", config))
    stops = generation_config(model, tokenizer, (2,), SamplingParams(temperature=0.0))
    write_export(model, tokenizer, gathered_weights(model), tmp_path / "out", card=card, generation=stops)
    code = (tmp_path / "out/README.md").read_text().split("````")[1].removeprefix("python\n")
    said: list[str] = []
    exec(code.replace('folder = "."', f'folder = "{tmp_path}/out"'), {"print": said.append})
    assert said[0].startswith("<think>") and Path(tmp_path / "out/model.safetensors").is_file()


def test_the_cards_parser_reads_what_the_card_describes():
    """Several calls in a block, a line each, with `parameters`."""
    calls = [f'{{"name": "get_weather", "parameters": {{"city": "{city}"}}}}' for city in ("Oslo", "Rome")]
    answer = "\n".join(("<think> Both. </think>", "<tool_call>", *calls, "</tool_call>"))
    assert [call.parameters for call in parse(answer).calls or ()] == [{"city": "Oslo"}, {"city": "Rome"}]
