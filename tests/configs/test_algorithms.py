"""Every method runs from its config alone, and does what makes it that method."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from src.algorithm.advantages import group_advantages
from src.algorithm.policy_loss import PolicyLossConfig
from src.protocol.types import Region
from src.train import train
from src.training.objective import PolicyGradient
from src.training.settings import AlgorithmSettings, SupervisedSettings
from tests.conftest import HARDLY_VALIDATED, ROOT, SMALL, train_config

ALGORITHMS = sorted(path.stem for path in (ROOT / "configs/algorithm").glob("*.yaml"))
SUPERVISED = ["rsft", "sft", "tsft"]
STEPS = (
    *SMALL,
    "updates.rollout_steps=2",
    "trainer.val_check_interval=2",
    *HARDLY_VALIDATED,
    "sampling.n=4",
    "callbacks.checkpoint=null",
)
FIRST = ("updates.rollout_steps=1", "trainer.val_check_interval=1")
EVEN = "reward._target_=tests.models.even_reward.EvenReward"  # rewards that differ, whatever is sampled


def settings(name: str, *overrides: str) -> AlgorithmSettings | SupervisedSettings:
    return instantiate(train_config(Path(), f"algorithm={name}", *overrides).algorithm)


def run(folder: Path, policy: Path, *overrides: str) -> list[dict]:
    folder.mkdir(exist_ok=True)
    train(train_config(folder, *STEPS, "data.train.num_train=30", f"policy.path={policy}", *overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "rollout_step"]


TRAINED_BELOW = (
    *("rest_auto", "rest_auto_impurity", "rest_dynamic_sampling", "rest_kl", "rest_no_cot_gradient"),
    *("rest_published", "rest_variance_optimal", "sft"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in TRAINED_BELOW else name for name in ALGORITHMS]
)
def test_every_algorithm_trains(name, random_policy, tmp_path):
    steps = run(tmp_path, random_policy, f"algorithm={name}", "sampling.n=2")
    assert [step["rollout_step"] for step in steps] == [0, 1]
    assert all(torch.isfinite(torch.tensor(step["train/loss"])) for step in steps)
    assert json.loads((tmp_path / "summary.json").read_text())["algorithm"] == name
    assert not list(tmp_path.rglob("*.ckpt"))  # callbacks.checkpoint=null: none of Lightning's own either


def test_the_table_of_factors_can_be_chosen():
    """Format 0.95 and 1.0, reasoning 0.016 and 0.6: Tables F.1 and F.2."""
    tables = [settings("rest", f"algorithm/factors={name}").weighting.factors for name in ("qwen3", "llama3")]
    assert [(table.format, table.reasoning) for table in tables] == [(0.95, 0.016), (1.0, 0.6)]


def test_ablations_change_one_thing():
    """Against ResT with the same table, nothing else differs."""
    rest = settings("rest")
    weighting = rest.weighting
    assert (weighting.alpha_format, weighting.alpha_parameters, weighting.alpha_reasoning) == (0.002, 0.002, 0.002)
    for name in ("rest_no_curriculum", "rest_no_cot_gradient", "rest_kl", "rest_entropy_bonus", "rest_clip_higher"):
        other = settings(name)
        assert other.estimator == rest.estimator and other.weighting.factors == weighting.factors
        assert (other.loss == rest.loss) == (name in ("rest_no_curriculum", "rest_no_cot_gradient"))
        assert (other.weighting == weighting) == (other.loss != rest.loss)


def test_grpo_weighs_all_tokens_alike_for_good():
    for name in ("grpo", "dr_grpo", "rloo", "sft_grpo"):
        for progress in (0.0, 100.0):
            weighting = settings(name).weighting
            factors = weighting.factors_at(weighting.factors, progress)
            assert factors.table().tolist() == [1.0] * len(Region), name


def test_dr_grpo_divides_neither_by_deviation_nor_by_length():
    """Rewards 3 and 1: ±1 and not ±1/1; each token counts 1 / max_new_tokens, however long its sequence."""
    algorithm = settings("dr_grpo", "sampling.max_new_tokens=50")
    assert algorithm.loss.aggregation == "token_sum_constant" and algorithm.loss.max_length == 50
    rewards = torch.tensor([5.0, 1.0])
    assert group_advantages(rewards, estimator=algorithm.estimator, delta=1e-6).tolist() == [2.0, -2.0]
    assert group_advantages(rewards, estimator=settings("grpo").estimator, delta=0.0).tolist() == [1.0, -1.0]


def test_rloo_leaves_each_completion_out_of_its_baseline():
    """Rewards 4, 1, 1: 4 - 1, then 1 - 2.5 twice."""
    assert group_advantages(torch.tensor([4.0, 1.0, 1.0]), estimator=settings("rloo").estimator).tolist() == [
        3.0,
        -1.5,
        -1.5,
    ]


def test_no_curriculum_keeps_the_factors_and_rest_moves_them():
    still, moving = settings("rest_no_curriculum").weighting, settings("rest").weighting
    assert still.factors_at(still.factors, 200.0) == still.factors_at(still.factors, 0.0)
    later = moving.factors_at(moving.factors, 200.0)
    assert [round(value, 6) for value in (later.format, later.tool_parameters, later.reasoning, later.tool_name)] == [
        0.6,
        1.0,
        1.0,
        1.2,
    ]


def test_no_cot_gradient_leaves_reasoning_out_and_keeps_the_response(random_policy, tmp_path, monkeypatch):
    """What reaches the loss: weight 0 on every reasoning token, more on the others."""
    weighting = settings("rest_no_cot_gradient").weighting
    factors = weighting.factors_at(weighting.factors, 0.0)
    assert factors.reasoning == 0.0 and factors.response == 0.6

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = PolicyGradient.row_loss

    def spy(self, groups, counts, *, first):
        seen.extend((group.regions, group.weights) for group in groups)
        return original(self, groups, counts, first=first)

    monkeypatch.setattr(PolicyGradient, "row_loss", spy)
    tiny = str(ROOT / "src/models/tiny")
    run(tmp_path, Path(tiny), "algorithm=rest_no_cot_gradient", "sampling.max_new_tokens=60", *FIRST)
    regions, weights = torch.cat([r for r, _ in seen]), torch.cat([w for _, w in seen])
    reasoning = regions == Region.REASONING
    assert reasoning.sum() > 50 and not weights[reasoning].any() and (weights[~reasoning] > 0).all()


def test_no_dynamic_reward_is_worth_the_same_throughout():
    constant = instantiate(train_config(Path(), "algorithm=rest_no_dynamic_reward").reward)
    scheduled = instantiate(train_config(Path(), "algorithm=rest").reward)
    assert constant.bounds(0, 0.0) == constant.bounds(100, 0.9) == (-3.0, 4.0)
    assert (scheduled.bounds(0, 0.0), scheduled.bounds(150, 0.9)) == ((-4.0, 4.0), (-4.0, 4.0))
    assert scheduled.bounds(75, 0.5) == (-3.5, 4.0)  # format -1 to 1.5, correctness -2.5 to 2.5


def test_kl_is_zero_at_the_frozen_start_and_grows(random_policy, tmp_path):
    """One minibatch a step: at step 0 the policy is its reference."""
    overrides = ("algorithm=rest_kl", "algorithm.loss.kl_coef=0.003", EVEN, "optimizer.learning_rate=1.0e-3")
    steps = run(tmp_path, random_policy, *overrides, "updates.prompts_per_minibatch=4", "optimizer.warmup_steps=0")
    assert steps[0]["train/ref_kl"] == pytest.approx(0.0, abs=1e-10)
    assert steps[1]["train/ref_kl"] > 1e-5


def test_entropy_bonus_clip_higher_and_importance_are_in_the_loss():
    assert settings("rest_entropy_bonus").loss == PolicyLossConfig(entropy_coef=0.001)
    assert settings("rest_clip_higher").loss == PolicyLossConfig(clip_low=0.2, clip_high=0.28)
    assert settings("rest_importance").loss == PolicyLossConfig(importance_cap=2.0)


def test_gspo_and_cispo_are_grpo_with_another_surrogate():
    grpo = settings("grpo")
    for name, low, high in (("gspo", 3e-4, 4e-4), ("cispo", 1.0, 4.0)):
        other = settings(name)
        assert other.loss == PolicyLossConfig(surrogate=name, clip_low=low, clip_high=high)
        assert (other.weighting, other.estimator) == (grpo.weighting, grpo.estimator)


def test_gspo_clips_sequences_from_the_second_minibatch_on(random_policy, tmp_path):
    """Ratios are 1 in the first one; a step of 1e-3 then moves whole sequences past 3e-4."""
    overrides = ("algorithm=gspo", EVEN, "optimizer.learning_rate=1.0e-3", "optimizer.warmup_steps=0", *FIRST)
    (one,) = run(tmp_path / "one", random_policy, *overrides, "updates.prompts_per_minibatch=4")
    (two,) = run(tmp_path / "two", random_policy, *overrides, "updates.prompts_per_minibatch=4", "updates.passes=2")
    assert one["train/clip_fraction_low"] == one["train/clip_fraction_high"] == 0.0
    assert two["train/clip_fraction_low"] + two["train/clip_fraction_high"] > 0.1


def test_auto_factors_come_from_the_first_rollouts(tmp_path):
    """Both forms of Eq. 9 on the entropies that the step itself logged; the largest is the name factor 1.2."""
    for name, size in (("rest_auto", lambda h: h), ("rest_auto_impurity", lambda h: -torch.expm1(-h))):
        overrides = (f"algorithm={name}", "sampling.max_new_tokens=60", *FIRST)
        (step,) = run(tmp_path / name, ROOT / "src/models/tiny", *overrides)
        labels = ("reasoning", "tool_name", "tool_parameters", "format")
        entropies = torch.tensor([step[f"entropy/{label}"] for label in labels], dtype=torch.float64)
        raw = (1 / size(entropies)).clamp(0.001, 8.0)
        expected = (raw * 1.2 / raw.max()).tolist()
        assert [step[f"curriculum/{label}"] for label in labels] == pytest.approx(expected, rel=1e-5), name


def test_variance_optimal_weighs_by_the_inverse_of_what_is_measured(tmp_path):
    overrides = ("algorithm=rest_variance_optimal", "sampling.max_new_tokens=60", *FIRST)
    (step,) = run(tmp_path, ROOT / "src/models/tiny", *overrides)
    labels = ("reasoning", "tool_name", "tool_parameters", "format")
    beta = {label: step[f"curriculum/beta/{label}"] for label in labels}
    factors = {label: step[f"curriculum/{label}"] for label in labels}
    assert max(factors.values()) == pytest.approx(1.0) and min(factors.values()) < 0.5
    for less, more in itertools.permutations(labels, 2):
        if max(factors[less], factors[more]) < 1.0:  # below the clip: exactly inverse
            assert factors[less] * beta[less] == pytest.approx(factors[more] * beta[more], rel=1e-5)
        elif beta[less] < beta[more]:
            assert factors[less] >= factors[more]


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tmp_path, monkeypatch):
    """The tiny policy knows some prompts by heart: their groups give way to those of others, within bounds."""
    tiny = ROOT / "src/models/tiny"
    shared = ("data.prompts_per_step=8", "updates.prompts_per_minibatch=8", "sampling.max_new_tokens=112")
    shared += ("data.train.num_train=200", *FIRST)
    (plain,) = run(tmp_path / "plain", tiny, "algorithm=rest", *shared)
    (dynamic,) = run(tmp_path / "dynamic", tiny, "algorithm=rest_dynamic_sampling", *shared)
    assert plain["group/resampled"] == 0.0 and plain["group/zero_variance"] > 0.0
    assert dynamic["group/resampled"] > 0.0
    assert dynamic["group/zero_variance"] == pytest.approx(
        plain["group/zero_variance"] - dynamic["group/resampled"], abs=1e-6
    )


def test_published_regions_reach_the_loss(tmp_path, monkeypatch):
    """The published tagger leaves calls' JSON, the stop token and each span's last token without weight."""
    shares = {}
    for name in ("rest", "rest_published"):
        overrides = (f"algorithm={name}", "sampling.max_new_tokens=112", *FIRST)
        (step,) = run(tmp_path / name, ROOT / "src/models/tiny", *overrides)
        shares[name] = {r.label: (step[f"token_share/{r.label}"], step[f"gradient_share/{r.label}"]) for r in Region}
    assert shares["rest_published"]["other"][0] > 0.2 and shares["rest_published"]["other"][1] == 0.0
    assert shares["rest"]["other"][0] < 0.05
    assert shares["rest_published"]["tool_parameters"][0] < shares["rest"]["tool_parameters"][0]


def test_supervised_methods_weigh_the_parts_that_they_are_named_after():
    chosen = {name: settings(name) for name in SUPERVISED}
    assert all(isinstance(one, SupervisedSettings) for one in chosen.values())
    tables = {name: one.weighting.factors.table().tolist() for name, one in chosen.items()}
    assert tables["sft"] == [1.0] * len(Region)
    for name, doubled in (("tsft", {Region.TOOL_NAME, Region.TOOL_PARAMETERS}), ("rsft", {Region.REASONING})):
        assert {region for region in Region if tables[name][region] == 2.0} == doubled, name
        assert {region for region in Region if tables[name][region] == 1.0} == set(Region) - doubled, name


def test_sft_learns_its_targets(random_policy, tmp_path):
    """The likelihood of the targets rises, the targets earn full marks, and a weighted part falls faster."""
    overrides = ("updates.rollout_steps=6", "trainer.val_check_interval=6", "optimizer.learning_rate=3.0e-3")
    steps = run(tmp_path, random_policy, "algorithm=sft", *overrides, "optimizer.warmup_steps=0")
    assert steps[-1]["train/nll"] < 0.85 * steps[0]["train/nll"]
    assert all(step["reward/exact_match"] == 1.0 and step["reward/format"] == 1.0 for step in steps)
    assert "group/zero_variance" not in steps[0] and "train/ratio" not in steps[0]


@pytest.mark.parametrize(("name", "follows"), [("sft_grpo", "grpo"), ("sft_rest", "rest"), ("sft_rest_tuned", "rest")])
def test_sft_first(name, follows):
    config = train_config(Path(), f"algorithm={name}")
    assert config.warm_start._target_.endswith("WarmStart") and config.warm_start.source == config.data.train
    first, second = settings(name), settings(follows)
    assert first.loss == second.loss and first.weighting.alpha_reasoning == second.weighting.alpha_reasoning
    if name == "sft_rest_tuned":
        assert first.weighting.factors.reasoning > second.weighting.factors.reasoning
        assert first.weighting.factors.tool_parameters > second.weighting.factors.tool_parameters
    else:
        assert first.weighting == second.weighting
