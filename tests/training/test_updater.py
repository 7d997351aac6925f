"""Clipped steps over minibatches, by hand, on a policy that is a table of two logits."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.algorithm.policy_loss import LossInputs, PolicyLoss, PolicyLossConfig
from src.training.ranks import Ranks
from src.training.scorer import Scorer
from src.training.settings import UpdateSettings
from src.training.step_guard import NonFiniteError
from src.training.updater import Updater
from tests.training.fakes import FakePolicy, PlainOptimization, Told, group


def row_loss(groups, counts, *, first):
    return PolicyLoss(LossInputs.of(groups, first=first), PolicyLossConfig(), counts)


def build(folder: Path, *, clip: float = 1e9, loss=row_loss, **settings):
    policy, told = FakePolicy([0.0, 0.0]), Told()
    optimization = PlainOptimization(torch.optim.SGD(policy.parameters(), lr=1.0))
    chosen = UpdateSettings(rollout_steps=1, prompts_per_minibatch=1, gradient_clip=clip, **settings)
    scorer = Scorer(policy, Ranks(), 100, told)  # type: ignore[arg-type]
    updater = Updater(scorer, optimization, chosen, Ranks(), told, folder)
    return updater, policy, optimization, told


def run(updater, groups, minibatches, known=0, loss=row_loss):
    return updater.run(groups, minibatches, known, loss, temperature=1.0, rollout_step=5)


def test_one_step_by_hand(tmp_path):
    """Loss -(A / T / G) Σ ratio: two completions of one token, A = 1 for token 0 and -1 for token 1, p = 1/2 each.

    d log p(0) / d logits = (1/2, -1/2), d log p(1) = (-1/2, 1/2). The loss's gradient is
    -1/2 [(1/2, -1/2) - (-1/2, 1/2)] = (-1/2, 1/2): a step of 1 makes the logits (1/2, -1/2).
    """
    updater, policy, optimization, _ = build(tmp_path)
    updated = run(updater, [group([[0], [1]], [1.0, -1.0])], [1])
    torch.testing.assert_close(policy.logits.detach(), torch.tensor([0.5, -0.5]))
    assert updated.metrics["train/loss"] == 0.0  # -(1 - 1) / 2
    assert updated.metrics["train/grad_norm"] == pytest.approx(math.sqrt(0.5))
    assert updated.metrics["train/skipped"] == 0.0 and optimization.steps == 1
    torch.testing.assert_close(updated.groups[0].old_logprobs, torch.tensor([0.5, 0.5]).log())
    assert [len(scores.logprobs) for scores in updated.scores] == [2]


def test_the_gradient_is_clipped(tmp_path):
    updater, policy, _, _ = build(tmp_path, clip=0.1)
    run(updater, [group([[0], [1]], [1.0, -1.0])], [1])
    torch.testing.assert_close(
        policy.logits.detach(), torch.tensor([1.0, -1.0]) * 0.1 / math.sqrt(2), rtol=1e-4, atol=0
    )


def test_each_minibatch_is_a_step_and_each_pass_all_of_them(tmp_path):
    updater, _, optimization, _ = build(tmp_path, passes=3)
    groups = [group([[0], [1]], [1.0, -1.0]), group([[1], [0]], [1.0, -1.0])]
    known = updater._scorer.score(groups[1:], 1.0)
    groups[1] = replace(groups[1], old_logprobs=known[0].logprobs)
    updated = run(updater, groups, [1, 1], known=1)
    assert optimization.steps == 6
    assert len(updated.scores) == 1  # the first minibatch's, from the forward of its first update


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(tmp_path):
    def broken(groups, counts, *, first):
        loss = row_loss(groups, counts, first=first)

        class Broken:
            whole = False

            def __call__(self, logprobs, entropies, part):
                return loss(logprobs, entropies, part) * math.nan

            metrics = staticmethod(loss.metrics)

        return Broken()

    updater, policy, optimization, told = build(tmp_path, max_bad_steps=2)
    groups = [group([[0], [1]], [1.0, -1.0])]
    updated = run(updater, groups, [1], loss=broken)
    assert policy.logits.detach().tolist() == [0.0, 0.0] and optimization.steps == 0
    assert updated.metrics["train/skipped"] == 1.0 and math.isnan(updated.metrics["train/loss"])
    ((event, values),) = told.events
    assert event == "skipped_step" and values["loss"] == "nan" and values["in_a_row"] == 1
    assert (tmp_path / "bad_minibatches" / values["saved"]).is_file()
    with pytest.raises(NonFiniteError, match="rollout step 5: loss nan"):
        run(updater, groups, [1], loss=broken)
