"""One training from its config: what is read, and how often, and what it says at its end."""

import json
import logging

import pytest

from src.data.sources import base
from src.rewards.tool_call import ToolCallReward
from src.train import train
from src.training.run import schedule_moves
from src.wings.published.reward import PublishedReward
from tests.conftest import SMALL, published_corpus, train_config


@pytest.mark.parametrize(
    ("reward", "steps", "moves"),
    [
        (ToolCallReward(), 1, True),
        (ToolCallReward(), 150, True),  # from [-4, 4] over [-3.5, 4] to [-4, 4]
        (ToolCallReward(scaling="eq14"), 2, True),
        (ToolCallReward(scaling="constant"), 150, False),
        (PublishedReward(), 300, True),
        (PublishedReward(scheduled=False), 300, False),
    ],
)
def test_whether_a_schedule_moves_the_reward(reward, steps, moves):
    assert schedule_moves(reward, steps) is moves


@pytest.mark.parametrize(("reward", "moved"), [("default", True), ("constant", False)])
def test_a_reward_on_a_moved_scale_is_told_so_at_the_end(reward, moved, random_policy, tmp_path, caplog):
    caplog.set_level(logging.INFO, "src.training.run")
    run = tmp_path / "run"
    train(train_config(run, *SMALL, f"reward={reward}", f"policy.path={random_policy}"))
    assert json.loads((run / "summary.json").read_text())["reward_moved"] is moved
    told = {line.split()[0]: line for line in caplog.messages if " → " in line}
    assert ("(a schedule moved the reward's range: compare exact_match)" in told["val/reward"]) is moved
    assert told["val/exact_match"].count("(") == 0


def test_a_corpus_that_warms_up_and_trains_is_read_once(random_policy, tmp_path, monkeypatch):
    reads = []
    read = base.read_records
    monkeypatch.setattr(base, "read_records", lambda *source: reads.append(source) or read(*source))
    corpus = published_corpus(tmp_path / "rlla.json", 12)
    small = [override for override in SMALL if not override.startswith("data.train.")]
    settings = ("data=rlla", f"data.path={corpus}", "data.train.val_share=0.25", "prompt.layout=published", *small)
    train(
        train_config(tmp_path / "run", *settings, "warm_start=sft", "data.limit_val=1", f"policy.path={random_policy}")
    )
    assert len(reads) == 1
