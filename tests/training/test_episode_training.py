"""Training on whole episodes: trainer and sampler agree on what was sampled, packed or one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.train import train
from tests.conftest import HARDLY_VALIDATED, train_config

EPISODES = (
    *("experiment=tiny_episodes", "logger=csv", "trainer.accelerator=cpu", *HARDLY_VALIDATED),
    *("environment.num_train=40", "environment.num_val=4", "data.limit_val=4", "data.prompts_per_step=4"),
    *("updates.prompts_per_minibatch=2", "updates.rollout_steps=2", "trainer.val_check_interval=2", "sampling.n=4"),
    *("callbacks.progress_bar=null", "trainer.enable_progress_bar=false", "callbacks.checkpoint=null"),
    *("callbacks.rollout_log.every_n_steps=1", "callbacks.rollout_log.groups=4", "callbacks.live_figures=null"),
)


def trained(folder: Path, *overrides: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics of the rollout steps, and the logged episodes."""
    train(train_config(folder, *EPISODES, *overrides))
    rows, samples = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "rollouts.jsonl")
    )
    return [row for row in rows if "reward/total" in row], samples


@pytest.mark.parametrize("credit", ["episode", "turn"])
def test_trainer_and_sampler_agree_on_every_token(credit: str, tmp_path: Path) -> None:
    packed, samples = trained(tmp_path / "packed", f"algorithm.credit={credit}")
    assert len(packed) == 2
    for step in packed:
        assert step["train/sampler_gap_max"] < 1e-4
        assert step["episode/turns"] > 1 and 0 <= step["reward/total"] <= 1
    episodes = [sample["episode"] for sample in samples]
    assert any(turn["calls"] for episode in episodes for turn in episode["turns"])
    assert any(episode["rewrites"] for episode in episodes)  # thoughts are left out once the user speaks again
    for sample, episode in zip(samples, episodes, strict=True):
        assert sum(turn["tokens"] for turn in episode["turns"]) == len(sample["tokens"])
        assert sum(turn["earned"] for turn in episode["turns"]) == pytest.approx(sample["reward"], abs=1e-6)
    separate, others = trained(tmp_path / "separate", f"algorithm.credit={credit}", "policy.rows=separate")
    assert [sample["tokens"] for sample in others[:4]] == [sample["tokens"] for sample in samples[:4]]
    for key in ("train/loss", "train/grad_norm", "train/entropy"):
        assert separate[0][key] == pytest.approx(packed[0][key], rel=1e-4, abs=1e-6), key
