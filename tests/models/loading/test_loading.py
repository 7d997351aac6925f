"""Loading and exporting policies, on folders with tiny random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, PreTrainedModel, PreTrainedTokenizerFast

from src.algorithm.packing import pack
from src.models.loading.loading import LoadedPolicy, PolicyConfig, load_model, load_policy, load_tokenizer
from src.models.loading.lora import LoraSettings, add_lora, merged_named_tensors
from src.wings.exporting.folder import export
from src.wings.tiny.make import build_tokenizer
from tests.models.reference import TOLERANCE, VOCABULARY, perturb_adapters, random_group, tiny_model
from tests.models.sharded import GatheredBytes, first_of_two_ranks, shard

IDS = torch.arange(3, 15)[None]


def tokenizer(**settings: str) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **{"eos_token": "</s>", "pad_token": "<pad>"} | settings)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return fast


def assert_same_weights(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    assert [name for name, tensor in expected.state_dict().items() if not torch.equal(weights[name], tensor)] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(tiny_model("qwen3"), tokenizer(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_export_loads_again_with_identical_logits(kind: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied).eval()
    export(model, tokenizer(), tmp_path)
    loaded = load_policy(PolicyConfig(path=tmp_path, dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        # a policy's norms take other steps to the same numbers
        torch.testing.assert_close(loaded.policy.model(IDS).logits, model(IDS).logits, atol=TOLERANCE, rtol=0)
        for name, tensor in loaded.policy.model.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
            assert torch.equal(tensor, plain.state_dict()[name]), name
        # the same numbers at another place in memory, for which a kernel may sum in another order
        torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, atol=TOLERANCE, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer().chat_template
    # what runs the model here says nothing about how others should run it
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()


def test_dtypes(folder: Path) -> None:
    assert load_model(PolicyConfig(path=folder)).dtype == torch.bfloat16
    assert load_model(PolicyConfig(path=folder, dtype="float32")).dtype == torch.float32
    assert load_model(PolicyConfig(path=folder, dtype="auto")).dtype == torch.float32  # as it was saved


def test_random_weights_need_no_weight_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    config = PolicyConfig(path=folder, weights="random", dtype="float32")
    torch.manual_seed(5)
    first = load_model(config)
    torch.manual_seed(5)
    assert_same_weights(load_model(config), first)
    assert first.config.num_hidden_layers == 2


def test_stop_tokens_come_from_tokenizer_and_generation_config(folder: Path) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [7, 2, 9]}))
    assert load_policy(PolicyConfig(path=folder)).stop_token_ids == (2, 7, 9)


def test_padding_token_falls_back_on_the_end_of_sequence_token(folder: Path) -> None:
    plain = tokenizer()
    plain.pad_token = None
    plain.save_pretrained(folder)
    assert load_tokenizer(PolicyConfig(path=folder)).pad_token == "</s>"


def adapted(folder: Path, targets: object = "all-linear") -> LoadedPolicy:
    lora = LoraSettings(rank=2, alpha=6, target_modules=targets)  # type: ignore[arg-type]
    return load_policy(PolicyConfig(path=folder, dtype="float32", lora=lora, gradient_checkpointing=True))


def test_adapters_train_and_nothing_else(folder: Path) -> None:
    policy = adapted(folder, ["q_proj", "v_proj"]).policy.train()
    policy(pack([random_group(4, [3, 5])])).logprobs.sum().backward()
    with_gradient = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in policy.named_parameters() if ".lora_" in name}
    assert len(with_gradient) == 2 * 2 * 2  # layers, modules, A and B
    with pytest.raises(ValueError, match="no_such_layer"):
        adapted(folder, ["no_such_layer"])


def test_merged_weights_do_what_the_adapters_do(folder: Path, tmp_path: Path) -> None:
    loaded = adapted(folder)
    model = loaded.policy.model.eval()
    with torch.no_grad():
        before = model(IDS).logits
        perturb_adapters(model)
        after = model(IDS).logits
        assert (after - before).abs().max() > 0.1
        plain = tiny_model("qwen3", seed=9).eval()
        plain.load_state_dict(dict(merged_named_tensors(model)))
        # adapters as large as the weights: a relative error grows to perhaps five times TOLERANCE's through two layers
        torch.testing.assert_close(plain(IDS).logits, after, atol=5 * TOLERANCE, rtol=0)
        export(model, loaded.tokenizer, tmp_path / "merged")
        again = load_model(PolicyConfig(path=tmp_path / "merged", dtype="float32")).eval()
        assert_same_weights(again, plain)


def test_merged_weights_of_a_plain_model_are_its_own() -> None:
    model = tiny_model("llama")
    tensors = dict(merged_named_tensors(model))
    assert tensors.keys() == model.state_dict().keys() and "lm_head.weight" in tensors
    assert tensors["lm_head.weight"].data_ptr() == model.lm_head.weight.data_ptr()
    add_lora(model, LoraSettings(rank=2))
    assert dict(merged_named_tensors(model)).keys() == tensors.keys()


def test_shards_are_converted_before_they_are_gathered() -> None:
    """Of each tensor this rank's half is compared."""
    model, plain = (tiny_model("llama", vocab_size=96) for _ in range(2))  # even, so that no row is added
    sizes = sum(weight.numel() for weight in plain.state_dict().values())  # a tied head counts twice
    found = {}
    with first_of_two_ranks() as mesh:
        shard(model, mesh)
        for dtype in (None, torch.bfloat16, torch.float32):
            with GatheredBytes() as gathered:
                tensors = dict(merged_named_tensors(model, dtype))
            found[dtype] = gathered.bytes
            for name, expected in plain.state_dict().items():
                own = slice(len(expected) // 2)
                assert torch.equal(tensors[name][own], expected[own].to(dtype or torch.float32)), name
    assert found == {None: 4 * sizes, torch.float32: 4 * sizes, torch.bfloat16: 2 * sizes}


def test_incomplete_folders_are_named_file_by_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"policy\.path: the folder '.*nowhere' does not exist"):
        load_policy(PolicyConfig(path=tmp_path / "nowhere"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: weights \(model\*\.safetensors or pytorch_model\*\.bin\)"):
        load_policy(PolicyConfig(path=folder))
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: config\.json; tokenizer files \(.*\); weights"):
        load_policy(PolicyConfig(path=folder))
    with pytest.raises(FileNotFoundError, match=r"has neither config\.json nor model\.gguf"):
        load_policy(PolicyConfig(path=folder, gguf_file="model.gguf"))


def test_tokenizer_without_chat_template_or_end_is_refused(folder: Path) -> None:
    plain = tokenizer()
    plain.chat_template = None
    (folder / "chat_template.jinja").unlink()
    plain.save_pretrained(folder)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        load_policy(PolicyConfig(path=folder))
    endless = tokenizer()
    endless.eos_token = None
    endless.save_pretrained(folder)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_policy(PolicyConfig(path=folder))


def test_missing_packages_are_named() -> None:
    config = PolicyConfig(package="no_such_package", gguf_file="a.gguf")
    with pytest.raises(FileNotFoundError, match="the Python package 'no_such_package' is not installed"):
        load_policy(config)
    with pytest.raises(FileNotFoundError, match=r"'a\.gguf' is not in the package 'torch'; found \[\]"):
        load_policy(replace(config, package="torch"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected hub_id, path or package"),
        ({"path": "x", "dtype": "float16"}, r"policy\.dtype: expected one of .*found 'float16'"),
        ({"path": "x", "weights": "zero"}, r"policy\.weights: expected 'pretrained' or 'random', found 'zero'"),
        ({"package": "x"}, r"policy\.gguf_file, the file in it, is missing"),
    ],
)
def test_refuses_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**settings)  # type: ignore[arg-type]


def test_a_tokenizer_of_mistrals_model_type_loads(tmp_path: Path) -> None:
    """transformers imports mistral-common for it, and with it all that mistral-common needs."""
    build_tokenizer(vocab_size=512, examples=100).save_pretrained(tmp_path)
    MistralConfig(vocab_size=512).save_pretrained(tmp_path)
    loaded = load_tokenizer(PolicyConfig(path=tmp_path, weights="random"))
    assert loaded.decode(loaded("Hi there", add_special_tokens=False)["input_ids"]) == "Hi there"
