"""The identity of a model is its content: the same wherever it lies, another after any change."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.errors import ConfigError
from src.models.checkpoints.reading import checkpoint_digest
from src.models.loading.loading import PolicyConfig
from src.models.loading.lora import LoraSettings
from src.wings.evaluation.fingerprint import model_identity
from src.wings.evaluation.resolving import ModelSource
from tests.conftest import ROOT

TINY = ROOT / "src/models/tiny"


def identity(folder: Path) -> dict:
    return model_identity(ModelSource("x", "folder", PolicyConfig(path=folder, dtype="float32")))


@pytest.mark.parametrize(
    ("file", "changed"), [("model.safetensors", "weights"), ("chat_template.jinja", "files"), ("config.json", "files")]
)
def test_a_copied_folder_is_the_same_model_until_a_byte_changes(tmp_path, file, changed):
    copy = Path(shutil.copytree(TINY, tmp_path / "copy"))
    assert identity(copy) == identity(TINY)
    content = bytearray((copy / file).read_bytes())
    content[-2] ^= 1
    (copy / file).write_bytes(content)
    before, after = identity(TINY), identity(copy)
    assert [key for key in before if before[key] != after[key]] == [changed]


def test_a_checkpoint_is_its_tensors_whatever_its_name(tmp_path):
    state = {"a": torch.arange(1000.0), "b": torch.zeros(1000)}
    torch.save(state, tmp_path / "one.ckpt")
    torch.save(state, tmp_path / "two.ckpt")
    assert checkpoint_digest(tmp_path / "one.ckpt") == checkpoint_digest(tmp_path / "two.ckpt")
    state["b"][999] = 1e-30
    torch.save(state, tmp_path / "two.ckpt")
    assert checkpoint_digest(tmp_path / "one.ckpt") != checkpoint_digest(tmp_path / "two.ckpt")
    (tmp_path / "two.ckpt").write_bytes((tmp_path / "two.ckpt").read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"two.ckpt': expected a whole file of torch.save"):
        checkpoint_digest(tmp_path / "two.ckpt")


def test_a_checkpoint_of_adapters_is_a_model_with_its_base(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "one.ckpt")
    source = ModelSource("x", "run", PolicyConfig(path=TINY, lora=LoraSettings(rank=2)), {}, tmp_path / "one.ckpt")
    found = model_identity(source)
    assert found["base_weights"] == identity(TINY)["weights"] and found["weights"] != found["base_weights"]
    whole = model_identity(ModelSource("x", "run", PolicyConfig(path=TINY), {}, tmp_path / "one.ckpt"))
    assert whole["weights"] == found["weights"] and "base_weights" not in whole


def test_a_hub_model_is_its_commit(monkeypatch):
    source = ModelSource("x", "hub", PolicyConfig(hub_id="owner/name"))
    load = "transformers.AutoConfig.from_pretrained"
    monkeypatch.setattr(load, lambda *_, **__: SimpleNamespace(_commit_hash="c0ffee"))
    assert model_identity(source) == {"dtype": "bfloat16", "lora": None, "commit": "c0ffee", "weights": "pretrained"}

    def unreachable(*_, **__):
        raise OSError("No connection.\nMore lines.")

    monkeypatch.setattr(load, unreachable)
    with pytest.raises(ConfigError, match=r"model=owner/name: the hub does not give its config.json: No connection\.$"):
        model_identity(source)
