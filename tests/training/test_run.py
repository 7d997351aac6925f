"""One training from its config: what is read, and how often, and what it says at its end."""

import json
import logging
import shutil

import pytest
from omegaconf import OmegaConf

from src.data.sources import base
from src.protocol.dialogue import DataError
from src.rewards.tool_call import ToolCallReward
from src.runs.token_cache import TokenCache
from src.train import train
from src.training import run
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
    caplog.set_level(logging.INFO, "src.runs.summary")
    folder = tmp_path / "run"
    train(train_config(folder, *SMALL, f"reward={reward}", f"policy.path={random_policy}"))
    assert json.loads((folder / "summary.json").read_text())["reward_moved"] is moved
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


@pytest.fixture
def dated_policy(random_policy, tmp_path):
    """The random policy with a chat template that writes the date, as Llama 3.2's does."""
    folder = shutil.copytree(random_policy, tmp_path / "dated")
    template = folder / "chat_template.jinja"
    template.write_text('Today: {{ strftime_now("%d %b %Y") }}\n' + template.read_text())
    return folder


def test_the_date_in_prompts_is_that_of_the_first_start(dated_policy, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    small = (*SMALL, f"policy.path={dated_policy}", "validate_at_start=false")
    train(train_config(folder, *small, "prompt.date=2025-02-03"))
    assert OmegaConf.load(folder / "config.yaml").prompt.date == "2025-02-03"

    seen = []
    encode = TokenCache.encode
    monkeypatch.setattr(TokenCache, "encode", lambda cache, texts: seen.extend(texts) or encode(cache, texts))
    again = tmp_path / "again"
    config = train_config(
        again, *small, f"ckpt_path={folder}", "updates.rollout_steps=2", "trainer.val_check_interval=2"
    )
    assert config.prompt.date is None
    train(config)
    assert OmegaConf.load(again / "config.yaml").prompt.date == "2025-02-03"
    assert {text.split("\n")[0] for text in seen if "get" in text and "assistant" in text} == {"Today: 03 Feb 2025"}


def test_a_target_that_cannot_earn_full_marks_ends_the_run_or_is_left_out(random_policy, tmp_path):
    corpus = published_corpus(tmp_path / "rlla.json", 12)
    records = json.loads(corpus.read_text())
    records[3]["output"] = "<think> It ends with <|im_end|> here. </think>\n<response> Hi. </response>"
    corpus.write_text(json.dumps(records))
    small = [override for override in SMALL if not override.startswith("data.train.")]
    settings = ("data=rlla", f"data.path={corpus}", "data.train.val_share=0.25", "prompt.layout=published", *small)
    settings = (*settings, "data.limit_val=1", f"policy.path={random_policy}")
    with pytest.raises(DataError, match=r"rlla.json\[3\]: field 'target.thought': .*It cannot hold '<\|im_end\|>'"):
        train(train_config(tmp_path / "stopped", *settings))
    train(train_config(tmp_path / "run", *settings, "data.on_bad_record=skip"))
    assert json.loads((tmp_path / "run/summary.json").read_text())["bad_records"] == {"corpus": 0, "train": 0, "val": 1}


def test_prompts_that_are_validated_on_are_neither_trained_on_nor_imitated(random_policy, tmp_path, caplog):
    corpus = published_corpus(tmp_path / "train.json", 12)
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(json.loads(corpus.read_text())[:3]))
    small = [override for override in SMALL if not override.startswith("data.train.")]
    settings = ("data=rlla", f"data.path={corpus}", f"data.val.path={held_out}", "prompt.layout=published", *small)
    settings = (*settings, "data.limit_val=null", "warm_start=sft", f"policy.path={random_policy}")
    train(train_config(tmp_path / "run", *settings))
    assert json.loads((tmp_path / "run/summary.json").read_text())["twins"] == 3
    assert "train: 3 of 12 prompts are of dialogues that are validated on" in caplog.text
    assert "warm_start: 3 examples are validated on: left out." in caplog.text


def test_a_warm_start_imitates_no_bad_record(random_policy, tmp_path, monkeypatch):
    corpus = published_corpus(tmp_path / "rlla.json", 12)
    records = json.loads(corpus.read_text())
    for index in (3, 4, 5):
        records[index]["output"] = "<think> It ends with <|im_end|> here. </think>\n<response> Hi. </response>"
    corpus.write_text(json.dumps(records))
    small = [override for override in SMALL if not override.startswith("data.train.")]
    settings = ("data=rlla", f"data.path={corpus}", "data.train.val_share=0.25", "prompt.layout=published", *small)
    imitated = []
    start = run.warm_start
    monkeypatch.setattr(run, "warm_start", lambda *given: imitated.extend(given[-1]) or start(*given))
    settings = (*settings, "data.limit_val=1", "warm_start=sft", f"policy.path={random_policy}")
    train(train_config(tmp_path / "run", *settings, "data.on_bad_record=skip"))

    bad = json.loads((tmp_path / "run/summary.json").read_text())["bad_records"]
    assert bad["train"] == bad["warm_start"] > 0
    assert bad["train"] + bad["val"] == 3
    assert len(imitated) == 9 - bad["train"]  # three of twelve dialogues are held out
    assert not any("<|im_end|>" in example.target.thought for example in imitated)
