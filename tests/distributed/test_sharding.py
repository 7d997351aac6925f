"""Two ranks do what one process does: FSDP2 and DDP over gloo against a plain run, on the same ragged rollouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.runs import SCRIPTED, run, steps
from tests.models.reference import TOLERANCE

# AdamW's step is lr m / (√v + eps): at its usual eps a gradient that is rounding noise still moves a weight by lr. With
# 1e-2 another d in every gradient changes a step by at most 2 lr d / eps, and clipped gradients agree to d = 1e-6 (see
# tests/training/test_module.py): after 12 steps of 1e-3 weights differ by 2.4e-6, and by 12 roundings of 2^-24.
SMOOTH = "+optimizer.eps=1.0e-2"
ODD = (
    *(setting for setting in SCRIPTED if not setting.startswith("callbacks.rollout_log")),
    SMOOTH,
    "callbacks.rollout_log.every_n_steps=1",
    "callbacks.rollout_log.groups=12",  # all that rank 0 has
    "updates.rollout_steps=3",
    "data.prompts_per_step=12",
    "updates.prompts_per_minibatch=3",  # four optimizer steps a rollout step; two groups on one rank, one on the other
)


@pytest.fixture(scope="module")
def alone(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder, *ODD, f"policy.path={random_policy}", "trainer=cpu")
    return folder


def logged(folder: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    """The completions that rank 0 logged; each once."""
    records = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    found = {(record["rollout_step"], record["example"], record["completion"]): record for record in records}
    assert len(found) == len(records)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["fsdp_cpu", "ddp"])
def test_two_ranks_are_one_process(trainer: str, alone: Path, random_policy: Path, tmp_path: Path) -> None:
    one_file = {
        "fsdp_cpu": ["trainer.strategy.save_distributed_checkpoint=false"],
        "ddp": ["trainer.accelerator=cpu", "trainer.devices=2"],
    }
    run(tmp_path, *ODD, f"policy.path={random_policy}", f"trainer={trainer}", *one_file[trainer])
    expected, found = steps(alone), steps(tmp_path)
    assert len(expected) == len(found) == 3
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=TOLERANCE, abs=TOLERANCE)  # a gradient's norm, above all
    assert expected[2]["train/grad_norm"] > 0.01 and abs(expected[2]["train/loss"]) > 1e-4
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=0, atol=1e-5, msg=name)
    every, of_rank = logged(alone), logged(tmp_path)
    assert len(every) == 3 * 12 * 4 and 3 * 4 * 4 <= len(of_rank) <= 3 * 8 * 4  # one or two groups of each minibatch
    for key, record in of_rank.items():
        one = every[key]
        assert record["tokens"] == one["tokens"] and record["regions"] == one["regions"]
        assert (
            ("entropies" in record) == ("entropies" in one) == (one["advantage"] != 0)
        )  # the scripted engine has none
        for name in {"entropies", "loss_terms"} & record.keys() | {
            *("weights", "rollout_logprobs", "old_logprobs", "advantage", "reward")
        }:
            assert record[name] == pytest.approx(one[name], abs=2e-5), (key, name)  # logged to five digits


CALL = '<tool_call>{"name": "add", "arguments": {"item": "tea"}}</tool_call>'
ANSWERS = (f"<think>Tea.</think>{CALL}", CALL + CALL, CALL, "<tool_call>tea", "Done.")
PLAYED = (
    *(setting for setting in SCRIPTED if not setting.startswith(("reward.", "data.train.", "sampling.max"))),
    *("experiment=tiny_native", "data=episodes", "environment=python", "algorithm.credit=turn"),
    *("environment.path=tests/distributed/cart.py:Cart", "environment.turn_rewards=true", "episodes.max_turns=4"),
    "+rollout.texts=[" + ",".join(f"'{answer}<|im_end|>'" for answer in ANSWERS) + "]",
    *("updates.rollout_steps=2", "data.prompts_per_step=6", "updates.prompts_per_minibatch=3", SMOOTH),
)
"""Ragged episodes of up to four answers, whose history the template rewrites where they thought."""


@pytest.mark.slow
def test_two_ranks_play_the_episodes_of_one_process(tmp_path: Path) -> None:
    for name in ("train", "val"):
        rows = [json.dumps({"prompt": f"Fill the cart of {name} {number}."}) for number in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    files = f"environment.rows={{train: {tmp_path}/train.jsonl, val: {tmp_path}/val.jsonl}}"
    one_file = ("trainer=fsdp_cpu", "trainer.strategy.save_distributed_checkpoint=false")
    run(tmp_path / "one", *PLAYED, files, "trainer=cpu")
    run(tmp_path / "two", *PLAYED, files, *one_file)
    expected, found = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(expected) == len(found) == 2
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=TOLERANCE, abs=TOLERANCE)
    assert expected[1]["train/grad_norm"] > 0.01 and expected[1]["episode/rewrites"] > 0.1
    assert 1 < expected[1]["episode/turns"] < 4 and expected[1]["reward/total"] > 0.5
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(tmp_path / "one")[name], rtol=0, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def saved(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rollout steps on two ranks; `previous.ckpt` is the folder of shards after the second."""
    folder = tmp_path_factory.mktemp("saved")
    run(folder, *SCRIPTED, *FOUR, f"policy.path={random_policy}", "trainer=fsdp_cpu", "trainer.val_check_interval=2")
    return folder


FOUR = (
    SMOOTH,
    "updates.rollout_steps=4",
    "data.prompts_per_step=3",
    "updates.prompts_per_minibatch=3",
    "callbacks.checkpoint.every_n_rollout_steps=2",
    "algorithm=rest_kl",  # the frozen start is sharded and saved too
    "algorithm.loss.kl_coef=0.05",
    "optimizer.schedule=cosine",
)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_of_two_ranks_resume_on_any_number(ranks: int, saved: Path, random_policy: Path, tmp_path: Path) -> None:
    settings = (*SCRIPTED, *FOUR, f"policy.path={random_policy}", "trainer=fsdp_cpu", f"trainer.devices={ranks}")
    run(tmp_path, *settings, "trainer.val_check_interval=2", f"ckpt_path={saved / 'checkpoints/previous.ckpt'}")
    assert (saved / "checkpoints/previous.ckpt").is_dir()
    expected, found = steps(saved)[2:], steps(tmp_path)
    assert [step["rollout_step"] for step in found] == [2, 3]
    assert found[0]["train/ref_kl"] > 1e-5  # against the very start, not the checkpoint
    for before, after in zip(expected, found, strict=True):
        assert after["train/loss"] == pytest.approx(before["train/loss"], abs=1e-6)
        rounding = TOLERANCE if ranks == 1 else 1e-7  # one rank sums in another order
        assert after == pytest.approx(before, rel=rounding, abs=rounding)


@pytest.mark.slow
def test_a_warm_start_is_sharded_too_and_its_cache_serves_both(random_policy: Path, tmp_path: Path) -> None:
    """Two ranks make it, with adapters' fresh weights or without; then one process finds it, and so do two ranks."""
    settings = (
        *SCRIPTED,
        "updates.rollout_steps=1",
        "data.prompts_per_step=2",
        f"policy.path={random_policy}",
        "warm_start=sft",
        "warm_start.limit=32",
        "warm_start.batch_size=8",
        f"paths.cache_dir={tmp_path / 'cache'}",
    )
    made = run(tmp_path / "made", *settings, "trainer=fsdp_cpu")
    assert "Warm start: done" in made
    (file,) = (tmp_path / "cache/warm_start").iterdir()
    for trainer in ("cpu", "fsdp_cpu"):
        assert f"Warm start: loaded from {file}" in run(tmp_path / trainer, *settings, f"trainer={trainer}")
    made_steps = steps(tmp_path / "made")
    assert steps(tmp_path / "fsdp_cpu") == made_steps
    assert steps(tmp_path / "cpu")[0] == pytest.approx(made_steps[0], rel=TOLERANCE, abs=TOLERANCE)
