"""Exports from real trainings of the tiny policy: whole or absent, and the policy that was trained."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.models.loading.lora import merged_named_tensors
from src.train import train
from src.wings.evaluation.resolving import PROMPT_FILE, load_source, resolve_model
from src.wings.exporting.folder import ExportError
from tests.conftest import ROOT, SMALL, eval_config, train_config
from tests.distributed.runs import SCRIPTED
from tests.distributed.runs import run as run_training

STEPS = (
    *SMALL,
    "callbacks=hf_export",
    "callbacks.hf_export.every_n_rollout_steps=1",
    "updates.rollout_steps=2",
    "trainer.val_check_interval=2",
    "data.train.num_train=50",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup_steps=0",
    "reward._target_=tests.models.even_reward.EvenReward",
    "sampling.n=4",
)
LORA = ("policy/lora=default", "policy.lora.rank=2", "policy.lora.alpha=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exporting") / "run"
    folder.mkdir()
    train(train_config(folder, *STEPS))
    return folder


def greedy(model, tokenizer) -> list[int]:
    chat = [{"role": "system", "content": "get_weather(city)"}, {"role": "user", "content": "<user> Rome? </user>"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return model.generate(**ids, max_new_tokens=40, do_sample=False)[0].tolist()


def test_it_loads_and_says_what_the_trained_policy_says(run):
    assert sorted(path.name for path in (run / "exported").iterdir()) == ["final", "step_000001"]
    folder = run / "exported/final"
    exported, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    trained = load_source(resolve_model(eval_config(Path("unused"), f"model={run}", "checkpoint=last")))
    expected = trained.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported.state_dict().items())
    said = torch.tensor([greedy(exported, tokenizer)])
    assert len(said[0]) > 40 and trained.tokenizer.get_vocab() == tokenizer.get_vocab()
    # The same numbers at another place in memory, for which kernels may sum in another order. Some 33 products of 128
    # terms and more lie one behind the other: √33 √128 2^-24 = 3.9e-6 of a hidden state, and of logits of up to 25.
    with torch.no_grad():
        torch.testing.assert_close(exported(said).logits, trained.model(said).logits, rtol=0, atol=2e-4)
    earlier = AutoModelForCausalLM.from_pretrained(run / "exported/step_000001").state_dict()
    assert not torch.equal(earlier["model.norm.weight"], expected["model.norm.weight"])


def test_it_samples_as_training_did(run):
    saved = json.loads((run / "exported/final/generation_config.json").read_text())
    found = {key: saved[key] for key in ("do_sample", "temperature", "top_p", "top_k", "eos_token_id", "pad_token_id")}
    assert found == {
        "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "eos_token_id": 2, "pad_token_id": 0
    }  # fmt: skip


def test_the_card_tells_how_it_came_about(run):
    prompt = json.loads((run / "exported/final" / PROMPT_FILE).read_text())
    assert prompt == {"layout": "compact", "format": None, "chat_template_kwargs": None}
    _, head, text = (run / "exported/final/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["tool-use", "function-calling", "reinforcement-learning", "rest"]
    assert "# tiny, rest, 2 rollout steps" in text and "2 rollout steps (4 optimizer steps)" in text
    first, *_, last = [
        record
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if record["event"] == "validation"
    ]
    row = f"| `val/reward` | {first['val/reward']:.4g} | {last['val/reward']:.4g} |"
    assert row in text and "after rollout step 2." in text
    assert "| tool_parameters | 0.6 | 0.602 |" in text  # 0.6 + 0.002 * 1: the factors of the second step
    assert "Training prompts: 50; 4 a rollout step." in text and "train 0" in text
    assert "| `optimizer.learning_rate` | `0.001` |" in text
    assert '"""get_weather(city,day)"""' in text and "layout `compact`" in text
    early = (run / "exported/step_000001/README.md").read_text()
    assert "1 rollout steps (2 optimizer steps)" in early and "## Scores" not in early  # no validation by then


def test_adapters_are_merged_and_dtype_is_chosen(tmp_path):
    train(train_config(tmp_path, *STEPS, *LORA, "callbacks.hf_export.every_n_rollout_steps=null",
                       "updates.rollout_steps=1", "trainer.val_check_interval=1", "optimizer.learning_rate=0.05",
                       "callbacks.hf_export.dtype=bfloat16"))  # fmt: skip
    folder = tmp_path / "exported/final"
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert exported.dtype == torch.bfloat16 and json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert not any("lora" in name or "base_layer" in name for name in load_file(folder / "model.safetensors"))
    trained = load_source(resolve_model(eval_config(Path("unused"), f"model={tmp_path}", "checkpoint=last"))).model
    layer, merged = trained.model.layers[0].mlp.up_proj, exported.model.layers[0].mlp.up_proj.weight
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert update.abs().max() > 1e-4
    assert torch.equal(merged, (layer.base_layer.weight + update).bfloat16())
    assert "Adapters of rank 2 were trained and are merged" in (folder / "README.md").read_text()


def test_a_failed_export_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        Path(args[3], "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("src.wings.exporting.folder.save_folder", broken)
    with pytest.raises(ExportError, match=r"hf_export.folder: '.*step_000001' cannot be written: .*No space left"):
        train(train_config(tmp_path, *STEPS))
    assert list((tmp_path / "exported").iterdir()) == []


def test_a_resumed_run_replaces_its_exports_and_another_run_may_not(run, tmp_path):
    more = ("updates.rollout_steps=3", "trainer.val_check_interval=3", f"callbacks.hf_export.folder={run}/exported")
    with pytest.raises(ExportError, match=r"exported': expected a new folder, found one with other files in it"):
        train(train_config(tmp_path, *STEPS, *more))
    before = (run / "exported/final/model.safetensors").read_bytes()
    train(train_config(tmp_path, *STEPS, *more, f"ckpt_path={run}/checkpoints/last.ckpt"))
    assert sorted(path.name for path in (run / "exported").iterdir()) == ["final", "step_000001"]
    assert (run / "exported/final/model.safetensors").read_bytes() != before
    text = (run / "exported/final/README.md").read_text()
    assert "3 rollout steps" in text and "| `val/reward` | –" not in text  # the scores of the start came along


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("every_n_rollout_steps=0", r"callbacks\.hf_export\.every_n_rollout_steps: expected at least 1 or null"),
        ("dtype=float16", r"callbacks\.hf_export\.dtype: expected .* or null, found 'float16'"),
    ],
)
def test_impossible_settings(tmp_path, override, message):
    with pytest.raises(Exception, match=message):
        train(train_config(tmp_path, *STEPS, f"callbacks.hf_export.{override}"))


@pytest.mark.slow
def test_two_ranks_of_shards_export_what_their_checkpoint_holds(tmp_path):
    """Two FSDP2 processes with adapters; the folder of shards that they leave is read by one."""
    steps = (*SCRIPTED, *LORA, "callbacks=hf_export", "trainer=fsdp_cpu", "updates.rollout_steps=1",
             "data.train.num_train=50", "optimizer.learning_rate=0.05", "optimizer.warmup_steps=0")  # fmt: skip
    run_training(tmp_path, *steps)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported/final").state_dict()
    assert (tmp_path / "checkpoints/last.ckpt").is_dir()
    trained = load_source(resolve_model(eval_config(Path("unused"), f"model={tmp_path}", "checkpoint=last"))).model
    merged = dict(merged_named_tensors(trained))
    for name, tensor in exported.items():  # merged by two processes there and one here: see test_checkpoints
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=5e-7, msg=name)
    base = load_file(ROOT / "src/models/tiny/model.safetensors")
    assert not torch.equal(base["model.layers.0.mlp.up_proj.weight"], merged["model.layers.0.mlp.up_proj.weight"])
    assert "1 rollout steps (2 optimizer steps)" in (tmp_path / "exported/final/README.md").read_text()


def test_it_joins_other_callbacks(tmp_path):
    config = train_config(tmp_path, "callbacks=[variance,hf_export]")
    assert {"variance_meter", "hf_export", "checkpoint"} <= set(config.callbacks)
