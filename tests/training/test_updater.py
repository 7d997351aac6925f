"""Clipped steps over minibatches, by hand, on a policy that is a table of two logits."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import row_tokens
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig, Surrogate
from src.models.policy import Policy
from src.training.ranks import Ranks
from src.training.scorer import Scorer
from src.training.settings import UpdateSettings, ZeroAdvantage
from src.training.step_guard import NonFiniteError
from src.training.updater import Updated, Updater
from tests.models.reference import random_episodes, random_group, tiny_model
from tests.training.fakes import FakePolicy, PlainOptimization, Told, group


class Loss:
    """The loss of an objective."""

    def __init__(self, config: PolicyLossConfig = PolicyLossConfig()) -> None:  # noqa: B008  # immutable
        self.config, self.needs_all_tokens = config, config.needs_all_tokens

    def counts(self, groups):
        return LossCounts.of(groups, self.config.denominator)

    def row_loss(self, groups, counts, *, first):
        return PolicyLoss(LossInputs.of(groups, first=first), self.config, counts)


def build(folder: Path, *, clip: float = 1e9, **settings):
    policy, told = FakePolicy([0.0, 0.0]), Told()
    optimization = PlainOptimization(torch.optim.SGD(policy.parameters(), lr=1.0))
    chosen = UpdateSettings(rollout_steps=1, prompts_per_minibatch=1, gradient_clip=clip, **settings)
    scorer = Scorer(policy, Ranks(), 100, told)  # type: ignore[arg-type]
    updater = Updater(scorer, optimization, chosen, Ranks(), told, folder)
    return updater, policy, optimization, told


def run(updater, groups, minibatches, known=0, loss=None):
    return updater.run(groups, minibatches, known, loss or Loss(), temperature=1.0, rollout_step=5)


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
    class Broken(Loss):
        def row_loss(self, groups, counts, *, first):
            loss = super().row_loss(groups, counts, first=first)

            class Row:
                whole = False

                def __call__(self, logprobs, entropies, part):
                    return loss(logprobs, entropies, part) * math.nan

                metrics = staticmethod(loss.metrics)

            return Row()

    broken = Broken()
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


# Completions without an advantage


class Noting(PlainOptimization):
    """Keeps each step's gradient and takes no step."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(torch.optim.SGD(policy.parameters(), lr=1.0))
        self.gradients: list[torch.Tensor] = []

    def step(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None]))


class Ran(NamedTuple):
    updated: Updated
    gradients: list[torch.Tensor]
    rows: list[tuple[int, bool]]  # tokens of each forward, and whether it had a backward


def sampled(made: PromptGroup, advantages: list[float], seed: int, *, told: bool) -> PromptGroup:
    """The group as if it had been sampled with these advantages."""
    generator = torch.Generator().manual_seed(seed)
    n = len(made.token_ids)
    return replace(
        made,
        rollout_logprobs=-4 - torch.rand(n, generator=generator),
        weights=torch.rand(n, generator=generator),
        advantages=torch.tensor(advantages),
        rollout_entropies=torch.rand(n, generator=generator) if told else None,
    )


def mixed(*, told: bool = True) -> list[PromptGroup]:
    """A whole group, a group of which one completion has no advantage, two without any, and episodes by turn."""
    episodes = sampled(random_episodes(6, 3), [1.0, 1.0, 1.0], 3, told=told)
    credit = torch.ones(len(episodes.token_ids))
    first, second, _ = episodes.lengths.tolist()
    credit[:first] = 0  # the first episode leaves, of the second one token stays without an advantage
    credit[first + second - 1] = 0
    return [
        sampled(random_group(7, [5, 1, 9], seed=0), [1.0, 0.5, -1.5], 0, told=told),
        sampled(random_group(3, [2, 8, 3], seed=1), [0.7, 0.0, -0.7], 1, told=told),
        sampled(random_group(12, [4, 6], seed=2), [0.0, 0.0], 2, told=told),
        sampled(random_group(5, [3, 3], seed=4), [0.0, 0.0], 4, told=told),
        replace(episodes, credit=credit),
    ]


def ran(groups: Sequence[PromptGroup], folder: Path, *, loss: Loss, dtype: torch.dtype, **settings: Any) -> Ran:
    """Two passes over one minibatch, without a step."""
    policy, told = Policy(tiny_model("qwen3").to(dtype)), Told()
    rows: list[tuple[int, bool]] = []
    policy.register_forward_pre_hook(lambda _, row: rows.append((len(row[0].input_ids), torch.is_grad_enabled())))
    optimization = Noting(policy)
    chosen = UpdateSettings(rollout_steps=1, prompts_per_minibatch=1, gradient_clip=1e9, passes=2, **settings)
    updater = Updater(Scorer(policy, Ranks(), 40, told), optimization, chosen, Ranks(), told, folder)
    updated = updater.run(groups, [len(groups)], 0, loss, temperature=0.8, rollout_step=0)
    return Ran(updated, optimization.gradients, rows)


@pytest.mark.parametrize("surrogate", get_args(Surrogate))
@pytest.mark.parametrize("treatment", ["skip", "score"])
def test_without_what_has_no_advantage_the_gradient_is_the_same(treatment, surrogate, tmp_path):
    loss = Loss(PolicyLossConfig(surrogate=surrogate))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):  # found: 4.8e-7 and 1.8e-16
        expected = ran(mixed(), tmp_path, loss=loss, dtype=dtype, zero_advantage="train")
        found = ran(mixed(), tmp_path, loss=loss, dtype=dtype, zero_advantage=treatment)
        for one, other in zip(expected.gradients, found.gradients, strict=True):
            assert (one - other).norm() <= tolerance * one.norm()
        assert found.updated.metrics["train/loss"] == pytest.approx(expected.updated.metrics["train/loss"], rel=1e-5)


def tokens(rows: Sequence[tuple[int, bool]], *, backward: bool) -> int:
    return sum(size for size, trained in rows if trained == backward)


def test_what_leaves_the_update_costs_nothing_or_a_forward(tmp_path):
    """By hand, prompt + completions less one token each: the group with one completion less is 3 + 1 + 2 of
    3 + 1 + 7 + 2, and those of 12 + 3 + 5 and 5 + 2 + 2 leave whole; the episode takes its runs along."""
    groups = mixed()
    every = sum(row_tokens(group) for group in groups)
    episodes = row_tokens(groups[4].chosen(torch.tensor([False, True, True])))
    trained = (7 + 4 + 0 + 8) + (3 + 1 + 2) + episodes
    left = (3 + 7) + (12 + 3 + 5) + (5 + 2 + 2) + row_tokens(groups[4].chosen(torch.tensor([True, False, False])))
    loss = Loss()
    for treatment, backward, alone in (("train", every, 0), ("skip", trained, 0), ("score", trained, left)):
        rows = ran(groups, tmp_path, loss=loss, dtype=torch.float32, zero_advantage=treatment).rows
        assert tokens(rows, backward=True) == 2 * backward and tokens(rows, backward=False) == 2 * alone
    for config in (PolicyLossConfig(entropy_coef=0.1), PolicyLossConfig(entropy_coef=-0.1)):
        rows = ran(groups, tmp_path, loss=Loss(config), dtype=torch.float32, zero_advantage="skip").rows
        assert tokens(rows, backward=True) == 2 * every


def test_metrics_of_what_was_left_out(tmp_path):
    """`score` gives the metrics of `train`. `skip` counts the sampler's, or nothing where it does not tell."""
    settings: dict[str, Any] = {"loss": Loss(), "dtype": torch.float32}
    groups = mixed()
    every, scored, skipped, untold = (
        ran(made, tmp_path, zero_advantage=treatment, **settings).updated
        for made, treatment in (
            *((groups, treatment) for treatment in get_args(ZeroAdvantage)[::-1]),
            (mixed(told=False), "skip"),
        )
    )
    assert scored.metrics == pytest.approx(every.metrics, rel=1e-5, abs=1e-6)
    for one, other in zip(every.scores, scored.scores, strict=True):
        torch.testing.assert_close(other.logprobs, one.logprobs)
        torch.testing.assert_close(other.entropies, one.entropies)
    left = torch.cat([(~group.with_advantage).repeat_interleave(group.lengths) for group in groups])
    exact, found, missing = (
        torch.cat([scores.entropies for scores in updated.scores]) for updated in (every, skipped, untold)
    )
    told = torch.cat([group.rollout_entropies for group in groups])
    torch.testing.assert_close(found[~left], exact[~left])
    assert torch.equal(found[left], told[left]) and torch.equal(missing.isnan(), left)
    assert skipped.metrics["train/entropy"] == pytest.approx(float(torch.where(left, told, exact).mean()), rel=1e-5)
    assert untold.metrics["train/entropy"] == pytest.approx(float(exact[~left].mean()), rel=1e-5)
    gaps = torch.cat([(s.logprobs - g.rollout_logprobs).abs() for g, s in zip(groups, every.scores, strict=True)])
    assert skipped.metrics["train/sampler_gap"] == pytest.approx(float(gaps.where(~left, 0.0).mean()), rel=1e-5)
    assert untold.metrics["train/sampler_gap"] == pytest.approx(float(gaps[~left].mean()), rel=1e-5)
    old = torch.cat([group.old_logprobs for group in skipped.groups])
    assert torch.equal(old[left], torch.cat([group.rollout_logprobs for group in groups])[left])


def test_a_minibatch_without_any_advantage_is_a_step_of_gradient_zero(tmp_path):
    """As before: the optimizer's state moves on. Nothing is known of its tokens, so its means are no numbers."""
    found = ran(mixed(told=False)[2:4], tmp_path, loss=Loss(), dtype=torch.float32)
    assert len(found.gradients) == 2 and not any(gradient.any() for gradient in found.gradients)
    assert found.updated.metrics["train/loss"] == 0 and math.isnan(found.updated.metrics["train/entropy"])
    assert [size for size, _ in found.rows] == [1, 1]  # an empty row a pass


def test_a_router_loss_needs_all_tokens(tmp_path):
    updater, policy, _, _ = build(tmp_path)
    assert updater.zero_advantage(Loss()) == "skip"
    policy.router_loss = 0.001
    assert updater.zero_advantage(Loss()) == "train"


def _rank(rank: int, folder: str, name: str) -> None:
    """Rank 0 has the groups with an advantage, rank 1 those without; of `empty` it has none."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=2)
    groups = mixed(told=False)
    mine = groups[2:4] if rank else [*groups[:2], groups[4]]
    if name == "empty":
        mine = [] if rank else groups
    treatment = "score" if name == "score" else "skip"
    found = ran(mine, Path(folder), loss=Loss(), dtype=torch.float32, zero_advantage=treatment)
    gradients = torch.stack(found.gradients)
    torch.distributed.all_reduce(gradients)
    torch.save((gradients / 2, found.updated.metrics, len(found.rows)), Path(folder, f"{name}{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skip", "score", "empty"])
def test_a_rank_whose_groups_all_leave_takes_part(name, tmp_path):
    """Two ranks are one, and run equally many forwards."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path), name), nprocs=2)
    treatment = "score" if name == "score" else "skip"
    alone = ran(mixed(told=False), tmp_path, loss=Loss(), dtype=torch.float32, zero_advantage=treatment)
    found = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)]
    assert found[0][2] == found[1][2] >= 2  # forwards
    del alone.updated.metrics["train/grad_norm"]  # of a rank's own gradient, which nothing reduces here
    for gradients, metrics, _ in found:
        assert (gradients - torch.stack(alone.gradients)).norm() <= 1e-5 * gradients.norm()
        del metrics["train/grad_norm"]
        assert metrics == pytest.approx(alone.updated.metrics, rel=1e-5, abs=1e-6)
