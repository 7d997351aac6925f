"""Whole rollout steps of ours: `src.training.run.train` on an experiment of the project, step by step on request."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from omegaconf import DictConfig, open_dict

from src.config import policy_checks
from src.train import train
from tests.benchmarks.contestants import turnstile
from tests.benchmarks.serving import Channel
from tests.conftest import train_config

_STEPS = 1000


def step_config(job: dict[str, Any], folder: Path) -> DictConfig:
    """The job's experiment with its model and prompts of one length, without validation, checkpoints and samples."""
    config = train_config(
        folder,
        f"experiment={job['experiment']}",
        "data=synthetic",
        "benchmark=[]",
        "logger=csv",
        "validate_at_start=false",
        "optimized_metric=null",
        "preflight.action=off",
        "callbacks.checkpoint=null",
        "callbacks.rollout_log=null",
        "callbacks.progress_bar=null",
        "trainer.enable_progress_bar=false",
        "trainer.val_check_interval=null",
        "+trainer.limit_val_batches=0",
        "optimizer.learning_rate=1.0e-6",
        "optimizer.warmup_steps=0",
        f"data.prompts_per_step={job['prompts']}",
        f"data.max_prompt_tokens={job['prompt_tokens']}",
        f"sampling.n={job['completions']}",
        f"sampling.max_new_tokens={job['new_tokens']}",
        f"updates.rollout_steps={_STEPS}",
        f"updates.prompts_per_minibatch={job['prompts']}",
        f"updates.max_row_tokens={job['max_row_tokens']}",
        *job.get("overrides", ()),
    )
    prompts = "tests.benchmarks.prompts"
    with open_dict(config):
        config.warm_start = None
        config.policy.path = job["folder"]
        config.prompt._target_ = f"{prompts}.LengthRenderer"
        config.prompt.layout = "published"
        config.prompt.tokens = job["prompt_tokens"]
        config.data.train = {"_target_": f"{prompts}.ExampleSource", "count": job["prompts"], "data": job["data"]}
        config.reward._target_ = f"{prompts}.VariedReward"
        config.callbacks.turnstile = {"_target_": f"{turnstile.__name__}.Turnstile"}
    return config


def main() -> None:
    turnstile.channel = Channel()
    job = turnstile.channel.receive()
    # the end of sequence is a token without a logit on purpose, which a check would rightly refuse
    unchecked = mock.patch.object(policy_checks, "check_vocabulary")
    with tempfile.TemporaryDirectory() as folder, unchecked:
        train(step_config(job, Path(folder)))


if __name__ == "__main__":
    main()
