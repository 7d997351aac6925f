"""The policy loss: two completions by hand, every variant against its formula, and invariance to splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from src.algorithm.advantages import group_advantages
from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.algorithm.policy_loss import (
    Aggregation,
    Denominator,
    LossCounts,
    LossInputs,
    PolicyLoss,
    PolicyLossConfig,
    Surrogate,
)
from src.algorithm.region_weights import RegionFactors, RegionWeighting, token_weights
from src.protocol.types import Region

TABLE_F1 = RegionWeighting(
    factors=RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95),
    alpha_format=0.003,
    alpha_parameters=0.003,
    alpha_reasoning=6e-5,
)
VARIANTS = [
    PolicyLossConfig(),
    PolicyLossConfig(clip_low=0.1, clip_high=0.3, kl_coef=0.05, entropy_coef=0.02),
    PolicyLossConfig(aggregation="published", kl_coef=0.05, entropy_coef=0.02),
    PolicyLossConfig(aggregation="token_sum_constant", max_length=40, kl_coef=0.05, entropy_coef=0.02),
    PolicyLossConfig(importance_cap=1.05),
    PolicyLossConfig(dual_clip=1.2),
    PolicyLossConfig(surrogate="cispo", clip_low=1.0, clip_high=0.1, kl_coef=0.05),
    PolicyLossConfig(surrogate="gspo", clip_low=0.05, clip_high=0.05, entropy_coef=0.02, importance_cap=1.05),
]
WITHOUT_ALL = [
    PolicyLossConfig(surrogate=surrogate, aggregation=aggregation, max_length=40 if constant else None, **bounds)
    for surrogate in get_args(Surrogate)
    for aggregation in get_args(Aggregation)
    for bounds in ({}, {"importance_cap": 1.05}, *([] if surrogate == "cispo" else [{"dual_clip": 1.2}]))
    for constant in [aggregation == "token_sum_constant"]
]
"""Every surrogate with every aggregation and bound, and no term that needs all tokens."""
BY_TOKEN = [config for config in VARIANTS if config.surrogate != "gspo"]


def name_of(config: PolicyLossConfig) -> str:
    return config.aggregation if config.surrogate == "clipped" else config.surrogate


# In float32. A token's gradient is an exponential, which may differ in its last place between a vector's body and its
# end, times some 6 factors: 2^-23 + 6 * 2^-24 = 4.8e-7 of it. The loss sums up to 40 terms, 1.34 in all: each sum is
# rounded by up to 2^-24, 2.4e-6 together, and the terms by 4.8e-7 of themselves.
GRADIENT_RTOL = 1e-6
LOSS_ATOL = 5e-6


def random_group(seed: int, lengths: list[int]) -> PromptGroup:
    generator = torch.Generator().manual_seed(seed)
    n, g = sum(lengths), len(lengths)

    def draw(size: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return shift + scale * torch.randn(size, generator=generator)

    old = draw(n, 0.5, -1.5)
    return PromptGroup(
        prompt_ids=torch.tensor([1, 2]),
        token_ids=torch.zeros(n, dtype=torch.int64),
        lengths=torch.tensor(lengths),
        rollout_logprobs=old + draw(n, 0.05),
        regions=torch.randint(0, 6, (n,), generator=generator),
        rewards=torch.zeros(g),
        advantages=draw(g),
        weights=draw(n).abs(),
        old_logprobs=old,
        ref_logprobs=old + draw(n, 0.2),
    )


def scores(groups: list[PromptGroup], seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = torch.cat([group.old_logprobs for group in groups if group.old_logprobs is not None])
    logprobs = old + 0.3 * torch.randn(len(old), generator=generator).to(old.device)
    return logprobs.requires_grad_(), torch.rand(len(old), generator=generator).to(old.device).requires_grad_()


class Outputs(NamedTuple):
    loss: Tensor
    metrics: LossMetrics


def policy_loss(
    groups: Sequence[PromptGroup], logprobs: Tensor, entropies: Tensor, config: PolicyLossConfig, counts: LossCounts
) -> Outputs:
    """Loss and metrics of a whole row at once."""
    loss = PolicyLoss(LossInputs.of(groups), config, counts)
    return Outputs(loss(logprobs, entropies), loss.metrics(logprobs.detach(), entropies.detach()))


def formula(inputs: LossInputs, logprobs: Tensor, entropies: Tensor, config: PolicyLossConfig) -> Tensor:
    """The same loss written sequence by sequence, as in the paper."""
    starts = [0, *torch.cumsum(inputs.lengths, 0).tolist()]
    total = torch.zeros((), device=logprobs.device)
    for index in range(len(inputs.lengths)):
        part = slice(starts[index], starts[index + 1])
        advantage = inputs.advantages[part][0]
        log_ratio = logprobs[part] - inputs.old_logprobs[part]
        ratio = torch.exp(log_ratio)
        if config.surrogate == "gspo":  # Eq. 14 there: the sequence's ratio without gradient, times p / p without one
            ratio = torch.exp(log_ratio.mean()).detach() * torch.exp(logprobs[part] - logprobs[part].detach())
        clipped = torch.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        term = torch.min(ratio * advantage, clipped * advantage)
        if config.surrogate == "cispo":
            term = clipped.detach() * advantage * logprobs[part]
        if config.dual_clip is not None and advantage < 0:
            term = torch.max(term, config.dual_clip * advantage)
        if config.importance_cap is not None:
            correction = torch.exp(inputs.old_logprobs[part] - inputs.rollout_logprobs[part])
            term = term * torch.clip(correction, max=config.importance_cap)
        weighted = (inputs.weights[part] * term).sum()
        difference = inputs.ref_logprobs[part] - logprobs[part]
        extra = config.kl_coef * (difference.exp() - difference - 1) - config.entropy_coef * entropies[part]
        size = {"sequence": len(ratio), "token_sum_constant": config.max_length, "published": 1}[config.aggregation]
        if config.aggregation == "published":
            total = total - weighted / inputs.weights.sum() + extra.sum() / len(logprobs)
        else:
            total = total + (extra.sum() - weighted) / (size * len(inputs.lengths))
    return total


@pytest.mark.parametrize("config", WITHOUT_ALL, ids=str)
def test_a_token_without_an_advantage_has_no_gradient(config: PolicyLossConfig) -> None:
    """Exactly 0, whatever the ratio; and leaving its completion out changes no other token's."""
    whole = replace(random_group(0, [3, 7, 1]), advantages=torch.tensor([1.3, 0.0, -0.7]))
    counts = LossCounts.of([whole])
    logprobs, entropies = scores([whole])
    assert not config.needs_all_tokens
    policy_loss([whole], logprobs, entropies, config, counts).loss.backward()
    assert logprobs.grad is not None and logprobs.grad[3:10].tolist() == [0.0] * 7
    kept = torch.tensor([True] * 3 + [False] * 7 + [True])
    alone = logprobs.detach()[kept].requires_grad_()
    some = whole.chosen(whole.with_advantage)
    policy_loss([some], alone, entropies.detach()[kept], config, counts).loss.backward()
    torch.testing.assert_close(alone.grad, logprobs.grad[kept], rtol=GRADIENT_RTOL, atol=0)


@pytest.mark.parametrize("config", [PolicyLossConfig(kl_coef=0.1), PolicyLossConfig(entropy_coef=-0.1)], ids=str)
def test_penalty_and_bonus_need_all_tokens(config: PolicyLossConfig) -> None:
    whole = replace(random_group(0, [3, 7]), advantages=torch.tensor([1.3, 0.0]))
    logprobs, entropies = scores([whole])
    assert config.needs_all_tokens
    policy_loss([whole], logprobs, entropies, config, LossCounts.of([whole])).loss.backward()
    found = logprobs.grad if config.kl_coef else entropies.grad
    assert found is not None and bool((found[3:] != 0).all())
    with pytest.raises(ValueError, match=r"algorithm.loss.denominator: expected all with kl_coef or entropy_coef"):
        replace(config, denominator="with_advantage")


def test_the_denominator_counts_all_completions_or_those_with_an_advantage() -> None:
    """Two of three completions, of 1 + 2 tokens of weights 1 + 5: the loss is 3 / 2 of that over all three."""
    made = replace(
        random_group(0, [1, 3, 2]),
        advantages=torch.tensor([2.0, 0.0, -1.0]),
        weights=torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 3.0]),
    )
    assert LossCounts.of([made]) == (3, 6, 9)
    assert LossCounts.of([made], "with_advantage") == (2, 6, 6)
    logprobs, entropies = scores([made])
    every, some = (
        policy_loss([made], logprobs, entropies, PolicyLossConfig(), LossCounts.of([made], one)).loss
        for one in get_args(Denominator)
    )
    torch.testing.assert_close(some, every * 3 / 2)
    nothing = replace(made, advantages=torch.zeros(3))
    counts = LossCounts.of([nothing], "with_advantage")
    assert counts == (0, 6, 0)
    assert policy_loss([nothing], logprobs, entropies, PolicyLossConfig(), counts).loss == 0


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
def test_loss_and_gradient_agree_with_the_formula(config: PolicyLossConfig, device: torch.device) -> None:
    groups = [random_group(0, [3, 7, 1]).to(device), random_group(1, [5, 2]).to(device)]
    logprobs, entropies = scores(groups)
    found = policy_loss(groups, logprobs, entropies, config, LossCounts.of(groups)).loss
    expected = formula(LossInputs.of(groups), logprobs, entropies, config)
    torch.testing.assert_close(found, expected, atol=LOSS_ATOL, rtol=0)
    wants = (logprobs, entropies) if config.entropy_coef else (logprobs,)
    torch.testing.assert_close(
        torch.autograd.grad(found, wants), torch.autograd.grad(expected, wants), atol=1e-8, rtol=GRADIENT_RTOL
    )


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
def test_rows_sum_to_the_minibatch_however_it_is_split(config: PolicyLossConfig) -> None:
    groups = [random_group(seed, lengths) for seed, lengths in enumerate([[3, 7, 1], [5, 2], [4], [6, 6, 6]])]
    counts = LossCounts.of(groups)
    logprobs, entropies = scores(groups)
    sizes = [len(group.token_ids) for group in groups]
    by_group = list(zip(groups, logprobs.split(sizes), entropies.split(sizes), strict=True))
    whole = policy_loss(groups, logprobs, entropies, config, counts)
    (gradient,) = torch.autograd.grad(whole.loss, logprobs, retain_graph=True)
    for rows in ([[0], [1], [2], [3]], [[3, 0], [2, 1]], [[1, 3, 2], [0]]):
        outputs = []
        for row in rows:
            chosen, lp, ent = zip(*(by_group[index] for index in row), strict=True)
            outputs.append(policy_loss(chosen, torch.cat(lp), torch.cat(ent), config, counts))
        total = torch.stack([output.loss for output in outputs]).sum()
        torch.testing.assert_close(total, whole.loss, atol=LOSS_ATOL, rtol=0)
        (split_gradient,) = torch.autograd.grad(total, logprobs, retain_graph=True)
        torch.testing.assert_close(split_gradient, gradient, atol=1e-8, rtol=GRADIENT_RTOL)
        metrics = outputs[0].metrics
        for output in outputs[1:]:
            metrics = metrics + output.metrics
        # a token's exp(x) - x - 1 is 0.03 or so on average, and 1.2e-7 of exp(x) is 4e-6 of that
        assert metrics.means() == pytest.approx(whole.metrics.means(), rel=1e-5)


@pytest.mark.parametrize("config", BY_TOKEN, ids=name_of)
def test_parts_of_a_row_sum_to_its_loss(config: PolicyLossConfig) -> None:
    """By token, as the head asks for it: parts end inside of sequences."""
    groups = [random_group(0, [3, 7, 1]), random_group(1, [5, 2])]
    logprobs, entropies = scores(groups)
    loss = PolicyLoss(LossInputs.of(groups), config, LossCounts.of(groups))
    whole = loss(logprobs, entropies)
    parts = [slice(0, 5), slice(5, 6), slice(6, 18)]
    split = torch.stack([loss(logprobs[part], entropies[part], part) for part in parts]).sum()
    torch.testing.assert_close(split, whole, atol=LOSS_ATOL, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(split, logprobs)[0], torch.autograd.grad(whole, logprobs)[0], atol=1e-8, rtol=GRADIENT_RTOL
    )


@pytest.mark.parametrize("config", VARIANTS, ids=name_of)
def test_before_the_first_update_the_scores_are_the_old_log_probabilities(config: PolicyLossConfig) -> None:
    groups = [random_group(0, [3, 7, 1]), random_group(1, [5, 2])]
    counts = LossCounts.of(groups)
    logprobs = torch.cat([group.old_logprobs for group in groups]).requires_grad_()
    entropies = torch.rand(len(logprobs)).requires_grad_()
    scored = policy_loss(groups, logprobs, entropies, config, counts)
    loss = PolicyLoss(LossInputs.of([replace(g, old_logprobs=None) for g in groups], first=True), config, counts)
    found = loss(logprobs, entropies)
    assert torch.equal(found, scored.loss)
    assert torch.equal(torch.autograd.grad(found, logprobs)[0], torch.autograd.grad(scored.loss, logprobs)[0])
    assert loss.metrics(logprobs.detach(), entropies.detach()).means() == scored.metrics.means()


def two_completions(progress: float) -> PromptGroup:
    """Rewards 3 and 1; completion 0 is [format, name, parameters], completion 1 is [reasoning, format]."""
    regions = torch.tensor([Region.FORMAT, Region.TOOL_NAME, Region.TOOL_PARAMETERS, Region.REASONING, Region.FORMAT])
    lengths = torch.tensor([3, 2])
    rewards = torch.tensor([3.0, 1.0])
    return PromptGroup(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.arange(5),
        lengths=lengths,
        rollout_logprobs=torch.full((5,), -1.0),
        regions=regions,
        rewards=rewards,
        advantages=group_advantages(rewards, delta=0.0),
        weights=token_weights(TABLE_F1.factors_at(TABLE_F1.initial_factors(), progress), regions, lengths),
        old_logprobs=torch.full((5,), -1.0),
    )


@pytest.mark.parametrize(
    ("progress", "weights", "expected"),
    [
        # Factors .95 1.2 .8 (mean 2.95/3) and .016 .95 (mean .966/2):
        # w = 2.85/2.95 3.6/2.95 2.4/2.95 | .032/.966 1.9/.966.
        # Advantages (3 - 2)/1 = 1 and -1. Ratios 1.1 1.5 0.5 | 1.5 0.5; epsilon 0.2.
        # A = 1: min(r, clip r) = 1.1 1.2 0.5. A = -1: min(-r, -clip r) = -1.5 -0.8.
        # L = -1/2 [ (2.85*1.1 + 3.6*1.2 + 2.4*.5) / (2.95*3) - (.032*1.5 + 1.9*.8) / (.966*2) ].
        (0, [2.85 / 2.95, 3.6 / 2.95, 2.4 / 2.95, 0.032 / 0.966, 1.9 / 0.966],
         -0.5 * ((3.135 + 4.32 + 1.2) / 8.85 - (0.048 + 1.52) / 1.932)),
        # Factors .65 1.2 1.1 (mean 2.95/3) and .022 .65 (mean .672/2).
        (100, [1.95 / 2.95, 3.6 / 2.95, 3.3 / 2.95, 0.044 / 0.672, 1.3 / 0.672],
         -0.5 * ((2.145 + 4.32 + 1.65) / 8.85 - (0.066 + 1.04) / 1.344)),
    ],
)  # fmt: skip
def test_two_completions_by_hand(progress: float, weights: list[float], expected: float) -> None:
    group = two_completions(progress)
    assert group.advantages.tolist() == [1.0, -1.0]
    assert group.weights.tolist() == pytest.approx(weights, abs=1e-6)
    logprobs = (torch.tensor([1.1, 1.5, 0.5, 1.5, 0.5]).log() - 1).requires_grad_()
    entropies = torch.tensor([0.1, 0.2, 0.3, 2.0, 0.5])
    found = policy_loss([group], logprobs, entropies, PolicyLossConfig(), LossCounts.of([group]))
    assert found.loss.item() == pytest.approx(expected, abs=1e-6)

    # Clipped tokens (ratio 1.5 with A = 1, ratio 0.5 with A = -1) have no gradient; the others have -w r A / (2 T).
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    by_hand = [-weights[0] * 1.1 / 6, 0.0, -weights[2] * 0.5 / 6, weights[3] * 1.5 / 4, 0.0]
    assert gradient.tolist() == pytest.approx(by_hand, abs=1e-6)

    means = found.metrics.means()
    assert means["clip_fraction_high"] == pytest.approx(1 / 5) and means["clip_fraction_low"] == pytest.approx(1 / 5)
    assert means["ratio"] == pytest.approx(5.1 / 5) and means["ratio_max"] == pytest.approx(1.5)
    # k3 of KL(old || new): r - 1 - ln r, averaged.
    k3 = [r - 1 - math.log(r) for r in (1.1, 1.5, 0.5, 1.5, 0.5)]
    assert means["approx_kl"] == pytest.approx(sum(k3) / 5, abs=1e-6)
    assert means["entropy"] == pytest.approx(3.1 / 5)
    assert means["sampler_gap"] == means["sampler_gap_max"] == 0.0


def test_published_aggregation_by_hand() -> None:
    # Unnormalised factors at step 0: .95 1.2 .8 | .016 .95, sum 3.916; terms as above.
    group = two_completions(0)
    raw = token_weights(TABLE_F1.factors, group.regions, group.lengths, normalisation="none")
    group = replace(group, weights=raw)
    logprobs = torch.tensor([1.1, 1.5, 0.5, 1.5, 0.5]).log() - 1
    config = PolicyLossConfig(aggregation="published")
    found = policy_loss([group], logprobs, torch.zeros(5), config, LossCounts.of([group]))
    assert found.loss.item() == pytest.approx(-(1.045 + 1.44 + 0.4 - 0.024 - 0.76) / 3.916, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_completions_that_became_likely() -> None:
    # Advantage -1, ratios 1, 2 and 5: min(rA, clip A) = -1, -2, -5; bounded at 3 A: -1, -2, -3. Advantage 1 is as ever.
    group = replace(
        random_group(0, [3, 1]),
        old_logprobs=torch.zeros(4) - 3,
        advantages=torch.tensor([-1.0, 1.0]),
        weights=torch.ones(4),
    )
    logprobs = torch.tensor([1.0, 2.0, 5.0, 5.0]).log() - 3
    config = PolicyLossConfig(dual_clip=3.0)
    loss = policy_loss([group], logprobs, torch.zeros(4), config, LossCounts.of([group])).loss
    assert loss.item() == pytest.approx((6 / 3 - 1.2) / 2, abs=1e-6)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    """Ratios 2 and 1/2 at advantage 1, clipped to [0, 1.5]; Eq. 19 would leave the first without a gradient."""
    one = {"lengths": torch.tensor([5]), "rewards": torch.ones(1), "advantages": torch.ones(1)}
    group = replace(two_completions(0.0), **one, weights=torch.ones(5))
    logprobs = (group.old_logprobs + torch.tensor([2.0, 0.5, 1.0, 1.0, 1.0]).log()).requires_grad_()
    config = PolicyLossConfig(surrogate="cispo", clip_low=1.0, clip_high=0.5)
    loss = policy_loss([group], logprobs, torch.zeros(5), config, LossCounts.of([group])).loss
    expected = torch.tensor([-0.3, -0.1, -0.2, -0.2, -0.2])  # -clip(ratio) / 5
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("clip_high", "slope"), [(0.5, 1.0), (0.1, 0.0)])
def test_gspo_clips_whole_sequences_and_weighs_their_tokens(clip_high: float, slope: float) -> None:
    """Ratios 1.44 and 1 of one sequence: s = sqrt(1.44) = 1.2, so each token has -w 1.2 / 2, or none outside the clip.

    The other sequence, of ratio 1, has -w / 1 halved by the number of sequences in both.
    """
    group = replace(
        two_completions(0.0),
        token_ids=torch.arange(3),
        lengths=torch.tensor([2, 1]),
        weights=torch.tensor([0.5, 1.5, 1.0]),
        advantages=torch.ones(2),
        old_logprobs=torch.full((3,), -1.0),
        rollout_logprobs=torch.full((3,), -1.0),
        regions=torch.zeros(3, dtype=torch.int64),
    )
    logprobs = (group.old_logprobs + torch.tensor([1.44, 1.0, 1.0]).log()).requires_grad_()
    config = PolicyLossConfig(surrogate="gspo", clip_low=0.5, clip_high=clip_high)
    loss, metrics = policy_loss([group], logprobs, torch.zeros(3), config, LossCounts.of([group]))
    torch.testing.assert_close(loss, torch.tensor(-(min(1.2, 1 + clip_high) + 1) / 2), atol=1e-6, rtol=0)
    expected = torch.tensor([-0.5 * 1.2 / 4 * slope, -1.5 * 1.2 / 4 * slope, -0.5])
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], expected, atol=1e-6, rtol=0)
    assert metrics.means()["clip_fraction_high"] == pytest.approx((1 - slope) * 2 / 3)


def test_sampler_gap_and_its_truncated_correction() -> None:
    # old - rollout = ln 3 and -ln 2: correction min(3, 2) = 2 and 1/2. One token each, ratio 1, advantages 1 and 1.
    group = replace(random_group(0, [1, 1]), old_logprobs=torch.tensor([-1.0, -1.0]), advantages=torch.ones(2))
    group = replace(group, rollout_logprobs=torch.tensor([-1 - math.log(3), -1 + math.log(2)]), weights=torch.ones(2))
    given = ([group], torch.tensor([-1.0, -1.0]), torch.zeros(2))
    plain = policy_loss(*given, PolicyLossConfig(), LossCounts.of([group]))
    corrected = policy_loss(*given, PolicyLossConfig(importance_cap=2.0), LossCounts.of([group]))
    assert plain.loss.item() == pytest.approx(-1.0) and corrected.loss.item() == pytest.approx(-1.25, abs=1e-6)
    means = plain.metrics.means()
    assert means["sampler_gap"] == pytest.approx((math.log(3) + math.log(2)) / 2, abs=1e-6)
    assert means["sampler_gap_max"] == pytest.approx(math.log(3), abs=1e-6)


def test_minibatch_without_weight_or_with_impossible_tokens_is_finite() -> None:
    group = replace(random_group(0, [2, 2]), weights=torch.zeros(4))
    logprobs = torch.tensor([-1.0, -1e4, -2.0, 0.0], requires_grad=True)
    for config in VARIANTS:
        loss = policy_loss([group], logprobs, torch.zeros(4), config, LossCounts.of([group])).loss
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logprobs)[0]).all()


def test_missing_log_probabilities_are_named() -> None:
    group = random_group(0, [2])
    with pytest.raises(ValueError, match="expected old_logprobs on all 1 groups"):
        LossInputs.of([replace(group, old_logprobs=None)])
    inputs = LossInputs.of([replace(group, ref_logprobs=None)])
    with pytest.raises(ValueError, match=r"loss\.kl_coef is 0\.1, but the groups carry no ref_logprobs"):
        PolicyLoss(inputs, PolicyLossConfig(kl_coef=0.1), LossCounts.of([group]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dual_clip": 1.0}, r"loss\.dual_clip: expected null or more than 1, found 1\.0"),
        ({"aggregation": "mean"}, "expected one of"),
        ({"aggregation": "token_sum_constant"}, "max_length go together"),
        ({"max_length": 5}, "max_length go together"),
        ({"clip_low": 1.5}, r"loss\.clip_low: expected in \[0, 1\], found 1.5"),
        ({"surrogate": "ppo"}, r"loss\.surrogate: expected one of"),
        (
            {"surrogate": "cispo", "dual_clip": 3.0},
            r"loss\.dual_clip: expected null with surrogate 'cispo', found 3\.0",
        ),
        ({"importance_cap": 0.0}, r"loss\.importance_cap: expected null or more than 0"),
    ],
)
def test_refuses_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLossConfig(**settings)
