"""Frozen weights in 4 bits under adapters, with bitsandbytes' CPU kernels, whose forwards without gradient are coarser.

That samples are the trainer's is for a CUDA device to show, which no run goes without.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from src.errors import ConfigError
from src.models.loading import quantization
from src.models.loading.loading import load_model
from src.models.loading.lora import LoraSettings, merged_named_tensors
from src.models.loading.policy_config import PolicyConfig
from src.models.loading.quantization import is_packed
from src.train import train
from src.wings.exporting.run import export_model
from tests.architectures.test_families import model_folder
from tests.conftest import SMALL, train_config
from tests.distributed.runs import steps
from tests.models.reference import perturb_adapters
from tests.test_export import export_config


@pytest.fixture(scope="module")
def folder(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("plain"), "qwen3", random_policy, intermediate_size=128)


@pytest.fixture(autouse=True)
def as_if_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "on_cuda", lambda: True)


def packed_policy(folder: Path) -> PolicyConfig:
    return PolicyConfig(path=folder, dtype="float32", lora=LoraSettings(rank=2), four_bit=True)


def test_merged_weights_are_what_the_model_computes_with(folder: Path) -> None:
    model = load_model(packed_policy(folder)).train()
    packed = [name for name, p in model.named_parameters() if is_packed(p)]
    assert len(packed) == 14 and all(".base_layer.weight" in name for name in packed)  # 7 in each of 2 layers
    perturb_adapters(model)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = dict(merged_named_tensors(model))
    assert found.keys() == merged.state_dict().keys()
    merged.load_state_dict(found)
    ids = torch.arange(5, 30)[None]
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_weights_keep_16_levels_of_their_blocks(folder: Path) -> None:
    """NF4: each block of 64 weights takes at most 16 values, the largest of which is the block's largest weight."""
    name = "model.layers.0.mlp.down_proj.weight"
    found = dict(merged_named_tensors(load_model(packed_policy(folder))))[name].flatten().view(-1, 64)
    plain = load_file(folder / "model.safetensors")[name].flatten().view(-1, 64)
    assert max(len(block.unique()) for block in found) <= 16
    largest = plain.abs().amax(1)
    torch.testing.assert_close(
        found.abs().amax(1), largest, atol=0, rtol=0.02
    )  # the scales are quantised too, to 8 bits
    assert ((found - plain).abs().amax(1) <= 0.16 * largest).all()  # half of the widest gap of NF4, 0.30


def test_a_run_is_trained_resumed_and_exported(folder: Path, tmp_path: Path) -> None:
    settings = (*SMALL, "reward._target_=tests.models.even_reward.EvenReward", "policy/lora=default", "sampling.n=4")
    settings = (*settings, "optimizer.learning_rate=1.0e-2", "optimizer.warmup_steps=0", "+policy.four_bit=true")
    run = tmp_path / "run"
    run.mkdir()
    for count in (1, 2):
        train(train_config(run, *settings, f"policy.path={folder}", f"updates.rollout_steps={count}", "ckpt_path=auto"))
    assert len(steps(run)) == 2
    out = export_model(export_config(f"model={run}", "checkpoint=last", f"output={tmp_path / 'out'}"))
    exported = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert not hasattr(exported.config, "quantization_config")
    assert {p.dtype for p in exported.parameters()} == {torch.float32}
    start = dict(merged_named_tensors(load_model(packed_policy(folder))))
    moved = {name for name, tensor in exported.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved and all(name.endswith("_proj.weight") for name in moved)


def test_what_cannot_be_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"policy\.four_bit=true: expected adapters on pretrained weights"):
        PolicyConfig(path=folder, four_bit=True)
    with pytest.raises(ConfigError, match="found a sharded one"):
        load_model(packed_policy(folder), on_meta=True)
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="the package bitsandbytes is not installed"):
        load_model(packed_policy(folder))
    monkeypatch.setattr(quantization, "on_cuda", lambda: False)
    with pytest.raises(ConfigError, match="expected a CUDA device, found none"):
        load_model(packed_policy(folder))
