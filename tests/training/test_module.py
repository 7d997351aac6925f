"""The training loop: sampler and trainer agree, runs resume, bad numbers stop, what is rewarded is learnt."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.algorithm.policy_loss import PolicyLoss
from src.algorithm.region_weights import RegionFactors
from src.rollout.collect import StaleRolloutError, prompt_seed
from src.rollout.native.engine import NativeEngine
from src.train import train
from src.training.scorer import Scorer
from src.training.step import RolloutCallback
from src.training.step_guard import NonFiniteError
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config
from tests.models.reference import replay_completions

TINY_STEPS = (
    *SMALL,
    "reward._target_=tests.models.even_reward.EvenReward",
    "sampling.n=4",
    "optimizer.learning_rate=1.0e-3",
    "optimizer.warmup_steps=0",
    "callbacks.rollout_log=null",
    *HARDLY_VALIDATED,
)

# AdamW's step is lr m / (√v + eps). At its usual eps a gradient that is rounding noise still moves a weight by lr, in
# either direction. With eps = 1e-2 a step is smooth: another d in every gradient changes it by at most 2 lr d / eps.
# At this learning rate no ratio comes near the edge of the clip range, where a token has a gradient on one side only.
SMOOTH = ("+optimizer.eps=1.0e-2", "optimizer.learning_rate=3.0e-4")
# Gradients, clipped to a norm of 1, are at most 0.05 and agree to 2e-5 of that (see `TOLERANCE` in reference.py), so
# d = 1e-6: 8 steps of 2 * 3e-4 * 1e-6 / 1e-2 = 6e-8 are 4.8e-7, and 8 roundings of weights near 1, 2^-24 each, as much.
ATOL = 1e-6


def run(folder: Path, policy: Path, *overrides: str) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    train(train_config(folder, *TINY_STEPS, f"policy.path={policy}", *overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "rollout_step"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def without_times(steps: list[dict]) -> list[dict]:
    return [{key: value for key, value in step.items() if not key.startswith("time/")} for step in steps]


def test_sampler_agrees_with_trainer_after_every_update(random_policy, tmp_path):
    steps = run(tmp_path, random_policy, "updates.rollout_steps=5", "trainer.val_check_interval=5")
    assert [step["rollout_step"] for step in steps] == [0, 1, 2, 3, 4]
    for step in steps:
        assert step["train/sampler_gap_max"] < 1e-5
    start = load_file(random_policy / "model.safetensors")["model.embed_tokens.weight"]
    moved = (weights(tmp_path)["policy.model.model.embed_tokens.weight"] - start).abs().max()
    assert moved > 1e-3  # ten optimizer steps of 1e-3: the agreement is about new weights


@pytest.mark.parametrize("kept", [False, True])
def test_adapters_with_dropout_leave_the_sampler_gap_at_rounding_unless_it_is_kept(kept, random_policy, tmp_path):
    """Adapters start at nothing, so that dropping their inputs changes nothing before the first update."""
    lora = ("policy/lora=default", "policy.lora.dropout=0.1", f"policy.dropout={kept}")
    steps = run(tmp_path, random_policy, *lora, "updates.rollout_steps=4", "trainer.val_check_interval=4")
    gaps = [step["train/sampler_gap"] for step in steps]
    assert max(gaps[:1] if kept else gaps) < 2e-6
    assert min(gaps[1:]) > 1e-4 or not kept


def test_resumed_run_is_the_uninterrupted_run(random_policy, tmp_path):
    """Four steps at once, and two plus two: the same metrics, curriculum included, and the same weights."""
    settings = (
        "algorithm.weighting.initialiser=inverse_entropy",
        "optimizer.schedule=cosine",
        "trainer.val_check_interval=2",
    )
    whole = run(tmp_path / "whole", random_policy, "updates.rollout_steps=4", *settings)
    stopper = _StopAfter(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.training.run.instantiate_callbacks", stopper.callbacks)
        first = run(tmp_path / "first", random_policy, "updates.rollout_steps=4", *settings)
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    second = run(tmp_path / "second", random_policy, "updates.rollout_steps=4", f"ckpt_path={checkpoint}", *settings)
    assert [step["rollout_step"] for step in second] == [2, 3]
    assert without_times(first + second) == without_times(whole)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "second")[name], value), name


def test_region_factors_that_a_callback_returned_once_hold_after_a_resume(random_policy, tmp_path):
    from src.config.instantiating import instantiate_callbacks

    class Once(RolloutCallback):
        def region_factors(self, module, step):
            return RegionFactors(reasoning=5.0) if step.index == 0 else None

        def on_rollout_step_end(self, trainer, module, step):
            step.metrics["factor"] = module.region_factors.reasoning

    settings = ("callbacks.curriculum=null", "callbacks.checkpoint.every_n_rollout_steps=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.training.run.instantiate_callbacks", lambda c: [Once(), *instantiate_callbacks(c)])
        first = run(tmp_path / "first", random_policy, *settings)
        steps = ("updates.rollout_steps=3", "trainer.val_check_interval=3")
        checkpoint = f"ckpt_path={tmp_path / 'first/checkpoints/last.ckpt'}"
        second = run(tmp_path / "second", random_policy, *settings, *steps, checkpoint)
    assert [step["factor"] for step in first + second] == [5.0, 5.0, 5.0]


def test_finished_runs_and_foreign_checkpoints_are_refused(random_policy, tmp_path):
    run(tmp_path / "done", random_policy)
    checkpoint = tmp_path / "done/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"finished, expected fewer than updates.rollout_steps=1 .* found 1"):
        run(tmp_path / "again", random_policy, f"ckpt_path={checkpoint}")
    content = torch.load(checkpoint, weights_only=True)
    del content["rollout_step"]
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="expected the keys rollout_step and global_step, found not both"):
        run(tmp_path / "other", random_policy, f"ckpt_path={tmp_path / 'foreign.ckpt'}")


def test_rows_do_not_matter(random_policy, tmp_path):
    """Every group in a row of its own or all in one: the same weights after the update, within rounding."""
    run(tmp_path / "one", random_policy, *SMOOTH, "updates.max_row_tokens=100000")
    run(tmp_path / "many", random_policy, *SMOOTH, "updates.max_row_tokens=1")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "many")[name], value, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("method", "passes"), [("rest", 2), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("rest_kl", "sft"))]
)
def test_updates_need_no_scoring_of_their_own(method, passes, random_policy, tmp_path, monkeypatch):
    """Old log-probabilities come from a pass before the update, its own forward or the sampler: the same run."""
    settings = (f"algorithm={method}", f"updates.passes={passes}", "updates.rollout_steps=2", "data.prompts_per_step=6")
    settings += ("updates.prompts_per_minibatch=3", "trainer.val_check_interval=2", *SMOOTH)
    replay_completions(monkeypatch)
    scored: list[int] = []
    original = Scorer.score

    def counting(self, groups, *args, **kwargs):
        scored.append(len(groups))
        return original(self, groups, *args, **kwargs)

    monkeypatch.setattr(Scorer, "score", counting)
    train = "updates.zero_advantage=train"
    before = run(tmp_path / "score", random_policy, "updates.old_logprobs=score", train, *settings)
    every = [6, 6] if method == "rest_kl" else [6]  # with the reference's
    assert scored == every * 2
    scored.clear()
    reused = run(tmp_path / "update", random_policy, "updates.old_logprobs=update", train, *settings)
    assert scored == [3, *every[1:]] * 2
    for one, other in zip(without_times(before), without_times(reused), strict=True):
        assert other == pytest.approx(one, abs=2e-5)
        assert method == "sft" or other["train/clip_fraction_high"] == other["train/clip_fraction_low"] == 0
    for name, value in weights(tmp_path / "score").items():
        torch.testing.assert_close(weights(tmp_path / "update")[name], value, rtol=0, atol=ATOL)
    scored.clear()
    sampled = run(tmp_path / "sampler", random_policy, *settings)  # by default, and without what has no advantage
    expected = [3, *every[1:]] if method == "sft" else every[1:]  # which samples nothing
    assert [count for count in scored if count] == expected * 2
    differs = ("train/sampler_gap", "train/entropy", "train/approx_kl", "train/ratio")  # see docs/method.md
    for one, other in zip(without_times(before), without_times(sampled), strict=True):
        same = [key for key in one if not key.startswith(differs)]
        assert {key: other[key] for key in same} == pytest.approx({key: one[key] for key in same}, abs=5e-5)
        assert other["train/entropy"] == pytest.approx(one["train/entropy"], abs=2e-3)
    for name, value in weights(tmp_path / "score").items():
        torch.testing.assert_close(weights(tmp_path / "sampler")[name], value, rtol=0, atol=ATOL)


def test_stale_weights_are_an_error(random_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(NativeEngine, "update_weights", lambda self, named_tensors, version: None)
    with pytest.raises(StaleRolloutError, match="expected completions from weights version 1, found 0"):
        run(tmp_path, random_policy, "updates.rollout_steps=2", "trainer.val_check_interval=2")


def test_non_finite_gradient_stops_before_the_weights_change(random_policy, tmp_path, monkeypatch):
    original = PolicyLoss.__call__

    def broken(self, logprobs, entropies, part):
        return original(self, logprobs, entropies, part) + logprobs.sum() * float("nan")

    stepped = []
    monkeypatch.setattr(PolicyLoss, "__call__", broken)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: stepped.append(1))
    with pytest.raises(NonFiniteError, match=r"rollout step 0: loss nan.*optimizer.learning_rate"):
        run(tmp_path, random_policy, "updates.max_bad_steps=1")
    assert not stepped


def test_it_learns_what_is_rewarded(random_policy, tmp_path):
    """One-token completions, rewarded for an even number of bytes: from seldom to nearly always."""
    steps = run(
        tmp_path,
        random_policy,
        "updates.rollout_steps=25",
        "data.prompts_per_step=8",
        "updates.prompts_per_minibatch=4",
        "sampling.n=8",
        "sampling.max_new_tokens=1",
        "trainer.val_check_interval=25",
        "callbacks.health=null",
        "optimizer.learning_rate=5.0e-3",
    )
    rewards = [step["reward/total"] for step in steps]
    assert rewards[0] < 0.5
    assert sum(rewards[-5:]) / 5 > 0.95


def test_prompt_seed_depends_on_run_step_and_example():
    seeds = {prompt_seed(seed, step, example) for seed in (1, 2) for step in (0, 1) for example in ("a", "b")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**56 for seed in seeds)
    assert prompt_seed(1, 0, "a") == prompt_seed(1, 0, "a")


class _StopAfter:
    """Ends a fit after so many rollout steps, as a kill would, without telling the run that it was to end there."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def callbacks(self, config):
        from src.config.instantiating import instantiate_callbacks
        from src.training.step import RolloutCallback

        steps = self._steps

        class Stop(RolloutCallback):
            def on_rollout_step_end(self, trainer, module, step):
                if module.rollout_step == steps:
                    trainer.should_stop = True

        return [Stop(), *instantiate_callbacks(config)]
