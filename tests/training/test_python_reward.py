"""A whole training on functions of the user: what they say is learnt from, and logged by name."""

import json

import torch
from safetensors.torch import load_file

from src.train import train
from tests.conftest import SMALL, train_config

FUNCTIONS = """
import asyncio

async def even(completions, completion_ids, target, **kwargs):
    await asyncio.sleep(0)
    assert len(target) == len(kwargs["prompts"]) == len(completions)
    return [float(len(messages[0]["content"].encode()) % 2 == 0) for messages in completions]

def hardly(completions):
    return [None if index else 2.0 for index, _ in enumerate(completions)]

def never(completions):
    return [None] * len(completions)
"""


def test_a_run_learns_from_functions_and_logs_each(random_policy, tmp_path, monkeypatch):
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    functions = "{even: judges.py:even, hardly: {path: judges.py:hardly, weight: 0.0}, never: judges.py:never}"
    overrides = (
        *SMALL,
        "reward=python",
        "reward.rules=null",
        f"reward.functions={functions}",
        "callbacks.checkpoint.monitor=val/even",
        "sampling.n=4",
        "optimizer.learning_rate=1.0e-3",
        "optimizer.warmup_steps=0",
        f"policy.path={random_policy}",
        "data.val_splits=[val]",
    )
    final = train(train_config(tmp_path, *overrides))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if line["event"] == "rollout_step"]
    assert 0 < step["reward/even"] < 1
    assert step["reward/total"] == step["reward/even"]
    assert (step["reward/hardly"], step["reward/hardly/abstained"]) == (2.0, 15 / 16)
    assert "reward/never" not in step
    assert (step["reward/never/abstained"], step["reward/even/abstained"], step["reward/abstained"]) == (1.0, 0.0, 0.0)
    assert "reward/exact_match" in step
    assert final["val/reward"] == final["val/even"]
    assert final["val/never/abstained"] == 1.0
    assert "val/never" not in final
    records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [record["even"] for record in records] == [record["reward"] for record in records]
    assert [record.get("hardly") for record in records] == [2.0, None, None, None]
    start = load_file(random_policy / "model.safetensors")["model.embed_tokens.weight"]
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    moved = (checkpoint["policy.model.model.embed_tokens.weight"] - start).abs().max()
    assert moved > 1e-4
