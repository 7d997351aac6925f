"""A hybrid and a mixture of experts: killed and resumed, on two ranks, with adapters, and with experts kept in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.train import train
from src.wings.exporting.run import export_model
from tests.architectures.test_families import model_folder
from tests.conftest import SMALL, train_config
from tests.distributed.runs import run, steps
from tests.distributed.test_sharding import ODD, weights
from tests.faults.kill import compare
from tests.models.reference import TOLERANCE
from tests.test_export import export_config

KINDS = ("qwen3_5", "qwen3_moe")


@pytest.fixture(scope="module", params=KINDS)
def policy(request: pytest.FixtureRequest, random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp(request.param), request.param, random_policy)


@pytest.mark.slow
def test_kills_change_nothing(policy: Path, tmp_path: Path) -> None:
    told, problems = compare(tmp_path, kills=2, steps=4, overrides=(f"policy.path={policy}",))
    assert problems == [] and told.startswith("2 kills (1 any moment, 1 writing) of")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["fsdp_cpu", "ddp"])
def test_two_ranks_are_one_process(trainer: str, policy: Path, tmp_path: Path) -> None:
    """With experts sharded, and each expert's tensors read out of the checkpoint's form."""
    run(tmp_path / "alone", *ODD, f"policy.path={policy}", "trainer=cpu")
    more = {
        "fsdp_cpu": ["trainer.strategy.save_distributed_checkpoint=false"],
        "ddp": ["trainer.accelerator=cpu", "trainer.devices=2"],
    }
    run(tmp_path / "two", *ODD, f"policy.path={policy}", f"trainer={trainer}", *more[trainer])
    for one, two in zip(steps(tmp_path / "alone"), steps(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=TOLERANCE, abs=TOLERANCE)
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(tmp_path / "alone")[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_adapters_are_trained_and_exported(policy: Path, tmp_path: Path) -> None:
    settings = (
        *SMALL,
        "reward._target_=tests.models.even_reward.EvenReward",
        "optimizer.learning_rate=1.0e-2",
        "optimizer.warmup_steps=0",
        "policy/lora=default",
    )
    config = train_config(
        tmp_path / "run", *settings, f"policy.path={policy}", "updates.rollout_steps=2", "sampling.n=4"
    )
    Path(config.paths.output_dir).mkdir()
    train(config)
    for step in steps(tmp_path / "run"):
        assert step["train/sampler_gap_max"] < 1e-4
    folder = export_model(export_config(f"model={tmp_path / 'run'}", "checkpoint=last", f"output={tmp_path / 'out'}"))
    before, after = load_file(policy / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("self_attn.q_proj.weight") for name in moved)
    assert not any("router" in name or "experts" in name or name.endswith("gate.weight") for name in moved)
