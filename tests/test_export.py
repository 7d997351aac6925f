"""`python src/export.py`: a run's checkpoint becomes a folder that transformers loads."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.errors import ConfigError
from src.wings.exporting.run import export_model
from tests.conftest import ROOT


def export_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("export.yaml", overrides=list(overrides), return_hydra_config=False)
    config.paths.root_dir = str(ROOT)
    return config


def test_the_folder_holds_the_checkpoint(trained_run, tmp_path):
    folder = export_model(export_config(f"model={trained_run}", "checkpoint=last", f"output={tmp_path}/out"))
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    saved = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(exported[name.removeprefix("policy.model.")], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and tokenizer.eos_token_id == 2
    assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is True  # as training sampled
    card = (folder / "README.md").read_text()
    assert "1 rollout steps (2 optimizer steps)" in card and "| `optimizer.learning_rate` | `0.005` |" in card
    records = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    start, *_, end = [record["val/reward"] for record in records if record["event"] == "validation"]
    assert f"| `val/reward` | {start:.4g} | {end:.4g} |" in card
    # what the official BFCL command line wants to find
    assert {"config.json", "tokenizer_config.json"} <= {path.name for path in Path(folder).iterdir()}


def test_template_settings_of_the_run_are_told(trained_run, tmp_path, caplog):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").symlink_to(trained_run / "checkpoints/last.ckpt")
    saved = OmegaConf.load(trained_run / "config.yaml")
    saved.prompt.chat_template_kwargs = {"enable_thinking": True}
    OmegaConf.save(saved, run / "config.yaml")
    with caplog.at_level(logging.INFO):
        export_model(export_config(f"model={run}", "checkpoint=last", f"output={tmp_path}/out"))
    assert 'chat_template_kwargs={"enable_thinking": true}' in caplog.text


def test_no_folder_and_a_folder_with_a_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="output: expected a folder"):
        export_model(export_config("policy=tiny"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"output='.*': expected a new folder, found one with a model in it"):
        export_model(export_config("policy=tiny", f"output={tmp_path}"))
