"""The frozen start: exchanged and put back bit for bit, small under LoRA, kept by checkpoints."""

import json

import pytest
import torch

from src.models.checkpoints.reading import load_checkpoint
from src.models.loading.loading import PolicyConfig, load_policy
from src.models.loading.lora import LoraSettings
from src.train import train
from src.training.reference import FrozenStart
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config

LORA = ("policy/lora=default", "policy.lora.rank=4", "policy.lora.alpha=8")
KL = (
    *SMALL,
    "algorithm=rest_kl",
    "algorithm.loss.kl_coef=0.05",
    "reward._target_=tests.models.even_reward.EvenReward",
    "sampling.n=4",
    "data.train.num_train=30",
    "updates.prompts_per_minibatch=4",
    "optimizer.learning_rate=3.0e-3",
    "optimizer.warmup_steps=0",
    "callbacks.rollout_log=null",
    *HARDLY_VALIDATED,
)


def changed(policy: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)])
def test_weights_are_exchanged_and_put_back(lora, random_policy):
    policy = load_policy(PolicyConfig(path=random_policy, dtype="float32", lora=lora)).policy
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    reference = FrozenStart(policy)
    changed(policy)
    trained = {name: value.clone() for name, value in policy.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), reference.in_place_of(policy):
        assert all(torch.equal(value, start[name]) for name, value in policy.state_dict().items())
        raise RuntimeError("inside")
    assert all(torch.equal(value, trained[name]) for name, value in policy.state_dict().items())
    with reference.in_place_of(policy):  # the reference itself was not changed by having been exchanged
        assert all(torch.equal(value, start[name]) for name, value in policy.state_dict().items())


def test_adapters_need_no_second_model(random_policy):
    policy = load_policy(PolicyConfig(path=random_policy, dtype="float32", lora=LoraSettings(rank=4, alpha=8))).policy
    adapters = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in policy.parameters())
    assert sum(buffer.numel() for buffer in FrozenStart(policy).buffers()) == adapters < 0.2 * whole


@pytest.mark.parametrize("lora", [(), pytest.param(LORA, marks=pytest.mark.slow)])
def test_resumed_runs_keep_their_reference(lora, random_policy, tmp_path):
    """One step, then another from its checkpoint: the divergence is from the very start, as without a break."""

    def steps(folder: str, *overrides: str) -> list[float]:
        (tmp_path / folder).mkdir()
        train(train_config(tmp_path / folder, *KL, *lora, f"policy.path={random_policy}", *overrides))
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [line["train/ref_kl"] for line in lines if line["event"] == "rollout_step"]

    whole = steps("whole", "updates.rollout_steps=2", "trainer.val_check_interval=2")
    assert whole[0] == pytest.approx(0.0, abs=1e-10) and whole[1] > 1e-6
    (first,) = steps("first", "updates.rollout_steps=1", "callbacks.checkpoint.every_n_rollout_steps=1")
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    (second,) = steps("second", "updates.rollout_steps=2", "trainer.val_check_interval=2", f"ckpt_path={checkpoint}")
    assert [first, second] == whole
    config = PolicyConfig(path=random_policy, dtype="float32", lora=LoraSettings(rank=4, alpha=8) if lora else None)
    load_checkpoint(load_policy(config).policy.model, checkpoint)  # evaluation leaves the reference aside
