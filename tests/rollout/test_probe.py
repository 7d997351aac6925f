"""The probe: an engine that computes with other weights than the policy's stops the run."""

import pytest
import torch

from src.rollout.engine import Completion, SamplingParams
from src.rollout.native import engine as native
from src.rollout.probe import EngineMismatchError, Gap, check_gap, gap_limits, probe_group, probe_params
from src.train import train
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config

COPY = (
    *SMALL,
    "rollout.owns_model=true",
    "updates.rollout_steps=2",
    "trainer.val_check_interval=2",
    "reward._target_=tests.models.even_reward.EvenReward",
    "sampling.n=4",
    "optimizer.learning_rate=1.0e-2",
    "optimizer.warmup_steps=0",
    *HARDLY_VALIDATED,
)


def test_limits_by_type():
    assert gap_limits(torch.float32) == gap_limits(torch.float64) == (1e-4, 1e-4)
    assert gap_limits(torch.bfloat16) == gap_limits(torch.float16) == (0.1, 1.0)
    assert gap_limits(torch.bfloat16, mean=0.2) == (0.2, 1.0)
    assert gap_limits(torch.bfloat16, largest=3.0) == (0.1, 3.0)


NAN = float("nan")


@pytest.mark.parametrize("gap", [(0.0, 0.0), (0.1, 0.1), (0.07, 1.0)])
def test_a_few_near_ties_pass(gap):
    check_gap(Gap(*gap), gap_limits(torch.bfloat16), 3, torch.bfloat16)


@pytest.mark.parametrize("gap", [(0.11, 0.2), (0.08, 1.1), (NAN, 0.0), (0.0, NAN), (NAN, NAN)])
def test_what_is_wrong_on_average_or_by_much_does_not(gap):
    message = rf"rollout step 3: .* by {gap[0]:.2e} nats on average and by up to {gap[1]:.2e}, .*lm_head.*probe_tolera"
    with pytest.raises(EngineMismatchError, match=message.replace("+", r"\+")):
        check_gap(Gap(*gap), gap_limits(torch.bfloat16), 3, torch.bfloat16)


def test_a_probe_is_greedy_and_its_group_is_the_completion():
    params = probe_params(SamplingParams(n=8, temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=64), 16)
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_new_tokens) == (1, 0.0, 1.0, 0, 16)
    logprobs = torch.tensor([-0.5, -0.25])
    group = probe_group(torch.tensor([1, 2, 3]), Completion(torch.tensor([7, 8]), logprobs, "length", 4))
    assert group.token_ids.tolist() == [7, 8] and torch.equal(group.rollout_logprobs, logprobs)
    assert group.lengths.tolist() == [2]


def test_a_copy_that_follows_passes_and_its_gap_is_logged(random_policy, tmp_path):
    metrics = train(train_config(tmp_path, *COPY, f"policy.path={random_policy}"))
    assert "val/exact_match" in metrics
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count('"engine/gap"') == 2


def _skips(model, named_tensors):
    """Takes the first weights and no later ones."""
    if not hasattr(model, "taken"):
        model.taken = True
        COPY_WEIGHTS(model, named_tensors)


def _leaves_the_head_out(model, named_tensors):
    """A part of the update does not arrive."""
    first = not hasattr(model, "taken")
    model.taken = True
    kept = model.lm_head.weight.clone()
    COPY_WEIGHTS(model, named_tensors)
    if not first:
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)


COPY_WEIGHTS = native.copy_weights


@pytest.mark.parametrize("broken", [_skips, _leaves_the_head_out])
def test_a_copy_that_does_not_follow_stops_the_run(broken, random_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "copy_weights", broken)
    with pytest.raises(EngineMismatchError, match=r"rollout step 1: .* differ from the trainer's"):
        train(train_config(tmp_path, *COPY, f"policy.path={random_policy}"))
