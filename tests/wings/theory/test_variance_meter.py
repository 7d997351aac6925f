"""The variance meter against gradients by autograd, and in a training."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.algorithm.packing import pack
from src.models.policy import Policy
from src.train import train
from src.training.ranks import Ranks
from src.training.step import RolloutStep
from src.wings.theory.variance_meter import VarianceMeter
from tests.conftest import ROOT, SMALL, train_config
from tests.models.reference import random_group, tiny_model

TEMPERATURE = 0.9


def policy_and_group(lengths=(6, 1, 9)):
    """A policy whose head is not its embedding, and a group whose rewards differ, with regions and weights."""
    model = tiny_model("qwen3", tie_word_embeddings=False).double()
    group = random_group(5, list(lengths), seed=3)
    generator = torch.Generator().manual_seed(4)
    n, g = len(group.token_ids), len(lengths)
    group = replace(
        group,
        regions=torch.randint(0, 6, (n,), generator=generator),
        weights=torch.rand(n, generator=generator) + 0.1,
        rewards=torch.arange(g).float(),
        advantages=torch.tensor([-1.2, 0.3, 0.9][:g]),
    )
    return Policy(model).train(), group


def module_with(policy, ranks=None):
    ranks = ranks or Ranks()
    return SimpleNamespace(policy=policy, temperature=TEMPERATURE, device=torch.device("cpu"), ranks=ranks)


def measured(meter, policy, groups, index=0):
    step = RolloutStep(index, [], groups, [torch.zeros(len(group.token_ids)) for group in groups])
    meter.on_rollout(None, module_with(policy), step)
    meter.on_rollout_step_end(None, module_with(policy), step)
    return step.metrics


def estimators(policy, group, weights):
    """g_i [G, V d] of each completion by autograd, with respect to the head's weight."""
    logprobs = policy(pack([group]), temperature=TEMPERATURE).logprobs
    sizes = group.lengths.tolist()
    parts = zip(group.advantages, (logprobs * weights).split(sizes), strict=True)
    head = policy.model.lm_head.weight
    return torch.stack(
        [torch.autograd.grad(a * part.mean(), head, retain_graph=True)[0].flatten() for a, part in parts]
    )


def test_variances_are_those_of_the_gradients():
    policy, group = policy_and_group()
    metrics = measured(VarianceMeter(), policy, [group])
    means = torch.cat([part.mean().repeat(len(part)) for part in group.weights.split(group.lengths.tolist())])
    uniform = estimators(policy, group, torch.ones(16))
    trained = estimators(policy, group, group.weights / means)
    for name, g in (("uniform", uniform), ("trained", trained)):
        assert metrics[f"variance/{name}/variance"] == pytest.approx(float(g.var(0).sum()), rel=1e-5)
        assert metrics[f"variance/{name}/second_moment"] == pytest.approx(float(g.square().sum(1).mean()), rel=1e-5)
    relative = float(trained.var(0).sum() / uniform.var(0).sum())
    assert metrics["variance/trained/relative"] == pytest.approx(relative, rel=1e-5)
    assert metrics["variance/groups"] == 1 and metrics["variance/too_long"] == 0
    bounds = {name: metrics[f"variance/{name}/bound"] for name in ("uniform", "trained", "optimal_token")}
    assert bounds["optimal_token"] == min(bounds.values())
    assert all(metrics[f"variance/{name}/expected_second_moment"] < bound for name, bound in bounds.items())


def test_optimal_region_weighs_by_the_mean_expected_squared_gradient_of_its_tokens():
    policy, group = policy_and_group()
    metrics = measured(VarianceMeter(floor=0.0), policy, [group])
    logprobs, head = policy(pack([group]), temperature=TEMPERATURE).logprobs, policy.model.lm_head.weight
    squares = torch.stack(
        [torch.autograd.grad(x, head, retain_graph=True)[0].square().sum() for x in logprobs.unbind()]
    )
    for region, label in ((0, "format"), (3, "reasoning")):
        assert metrics[f"moment/{label}/measured"] == pytest.approx(
            float(squares[group.regions == region].mean()), rel=1e-5
        )
    with torch.no_grad():
        expected = policy(pack([group]), temperature=TEMPERATURE, last_layer="moments").last_layer
    betas = torch.stack([expected.expected_second_moments[group.regions == region].mean() for region in range(6)])
    reciprocals = 1 / betas[group.regions]
    means = torch.cat([part.mean().repeat(len(part)) for part in reciprocals.split(group.lengths.tolist())])
    g = estimators(policy, group, reciprocals / means)
    assert metrics["variance/optimal_region/variance"] == pytest.approx(float(g.var(0).sum()), rel=1e-5)


def test_the_gradient_is_that_of_the_policy_that_sampled_and_the_weights_those_of_the_loss():
    policy, group = policy_and_group()
    expected = measured(VarianceMeter(), policy, [group])
    meter, step = VarianceMeter(), RolloutStep(0, [], [replace(group, weights=torch.ones(16))], [torch.zeros(16)])
    meter.on_rollout(None, module_with(policy), step)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(3)
    step.groups = [group]
    meter.on_rollout_step_end(None, module_with(policy), step)
    for key in ("trained/variance", "optimal_token/bound", "optimal_region/signal"):
        assert step.metrics[f"variance/{key}"] == expected[f"variance/{key}"]


def test_groups_that_teach_come_first_and_long_ones_are_left_out(caplog):
    policy, group = policy_and_group()
    equal = replace(group, rewards=torch.zeros(3), advantages=torch.zeros(3))
    _, long = policy_and_group((20, 20, 20))
    meter = VarianceMeter(every_n_rollout_steps=2, groups=1, max_tokens=16)
    with caplog.at_level(logging.WARNING):
        found = measured(meter, policy, [equal, long, group])
        later = measured(meter, policy, [long, equal], index=2)
    assert found["variance/groups"] == 1 and found["variance/too_long"] == 1
    alone = measured(VarianceMeter(), policy, [group])
    assert found["variance/uniform/variance"] == alone["variance/uniform/variance"]
    # only moments of a group without advantage
    assert later["variance/groups"] == 0 and later["moment/all/measured"] == alone["moment/all/measured"]
    assert not any(key.endswith("/variance") for key in later)
    assert measured(meter, policy, [group], index=3) == {}
    assert [record.message for record in caplog.records] == [
        "Rollout step 0: 1 group(s) of more than 16 sampled tokens are not measured "
        "(callbacks.variance_meter.max_tokens)."
    ]


def test_every_rank_runs_the_policy_as_often_as_the_one_with_the_fewest_groups():
    policy, group = policy_and_group()
    calls = []
    counted = lambda row, **settings: calls.append(1) or policy(row, **settings)  # noqa: E731
    step = RolloutStep(0, [], [group, group], [torch.zeros(16)] * 2)
    ranks = SimpleNamespace(min=lambda own: own.new_tensor(1), sum=lambda own: own)
    VarianceMeter(groups=2).on_rollout(None, module_with(counted, ranks), step)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, r"variance_meter\.groups: expected at least 1, found 0"),
        ({"max_tokens": 1}, r"variance_meter\.max_tokens: expected at least 2, found 1"),
        ({"floor": 2.0}, r"variance_meter\.floor: expected from 0 to 1, found 2\.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VarianceMeter(**settings)


def test_it_is_off_unless_asked_for_and_agrees_with_measured_weights_in_a_training(random_policy, tmp_path):
    assert "variance_meter" not in train_config(Path()).callbacks
    for name in sorted(path.stem for path in (ROOT / "configs/callbacks").glob("*.yaml")):
        assert "curriculum" in train_config(Path(), f"callbacks={name}").callbacks
    even = ("reward._target_=tests.models.even_reward.EvenReward", "sampling.n=4")
    overrides = (*SMALL, "callbacks=variance", "algorithm=rest_variance_optimal", *even, f"policy.path={random_policy}")
    train(train_config(tmp_path, *overrides))
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (step,) = [event for event in events if event["event"] == "rollout_step"]
    assert step["variance/groups"] >= 1
    for name in ("uniform", "trained", "optimal_region", "optimal_token"):
        values = {key: step[f"variance/{name}/{key}"] for key in ("variance", "second_moment", "signal", "bound")}
        assert values["second_moment"] == pytest.approx(values["variance"] + values["signal"], rel=1e-9)
    assert step["moment/all/expected"] < step["moment/all/surrogate"]
    betas = {key.split("/")[2]: value for key, value in step.items() if key.startswith("curriculum/beta/")}
    assert betas
    for label, beta in betas.items():  # the meter has measured all groups of the step, as the module's scoring has
        assert step[f"moment/{label}/measured"] == pytest.approx(beta, rel=1e-4)
