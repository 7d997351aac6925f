"""(4) FSDP2 on one rank, with NCCL on CUDA and gloo on a CPU: two steps, save, resume, against the run that went on."""

from __future__ import annotations

from collections.abc import Iterator

from src.callbacks.checkpoint import PREVIOUS
from tests.gpu.sections.runs import PLAIN, RunError, curve, summary, train
from tests.gpu.settings import Found, Proof

METRICS = ("reward/total", "train/entropy", "train/grad_norm")
BARS = {"cuda": 1e-2, "cpu": 1e-5}
"""On CUDA some gradients are sums in any order, in bfloat16."""


def prove(proof: Proof) -> Iterator[Found]:
    steps = (
        "trainer=fsdp",
        f"trainer.precision={'bf16-mixed' if proof.cuda else '32-true'}",
        "updates.rollout_steps=3",
        "data.train.num_train=200",
        "data.train.num_val=8",
        "data.prompts_per_step=4",
        "updates.prompts_per_minibatch=2",
        "sampling.n=4",
        "sampling.max_new_tokens=48",
        "validate_at_start=false",
        "trainer.val_check_interval=null",
        "+trainer.limit_val_batches=0",
        "optimized_metric=null",
        "callbacks.checkpoint.every_n_rollout_steps=2",
        "callbacks.checkpoint.monitor=null",
        *PLAIN,
    )
    whole = train(proof, "sharded", *steps)
    start = f"ckpt_path={whole / 'checkpoints' / PREVIOUS}"
    resumed = train(proof, "sharded_resumed", *steps, start)
    yield f"{'NCCL' if proof.cuda else 'gloo'}, one rank, {summary(resumed)['optimizer_steps']} optimizer steps"
    yield proof.result(
        "sharding",
        "saved after 2 steps",
        "rollout steps of the resumed run",
        summary(resumed)["rollout_steps"],
        bar=3,
    )
    for metric in METRICS:
        one, other = (curve(folder, metric) for folder in (whole, resumed))
        last = max(one)
        if list(other) != [last]:
            raise RunError(f"{resumed}: expected rollout step {last} alone, found {list(other)}.")
        yield proof.result(
            "sharding",
            f"{metric}, last step",
            "gap between the resumed run and the one that went on",
            abs(one[last] - other[last]),
            bar=BARS[proof.device],
            at_most=True,
            details={"resumed": other[last]},
        )
