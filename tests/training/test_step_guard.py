"""Optimizer steps that are not taken: nothing moves, the minibatch can be computed again, and too many end the run."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from src.algorithm.experience import PromptGroup, Tree
from src.algorithm.packing import pack
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig
from src.config.instantiating import instantiate_callbacks
from src.models.loading.loading import load_policy
from src.train import train
from src.training.settings import UpdateSettings
from src.training.step import RolloutCallback
from src.training.step_guard import Minibatch, NonFiniteError, StepGuard
from src.training.updater import Updater
from tests.conftest import HARDLY_VALIDATED, SMALL, train_config

SETTINGS = (
    *SMALL,
    "reward._target_=tests.models.even_reward.EvenReward",
    *HARDLY_VALIDATED,
    "sampling.n=4",
    "optimizer.learning_rate=1.0e-3",
    "optimizer.warmup_steps=100",  # the schedule moves with every step
    "callbacks.rollout_log=null",
    "callbacks.checkpoint=null",
)


def run(folder: Path, policy: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train; the lines of metrics.jsonl, which are JSON to the letter."""
    train(train_config(folder, *SETTINGS, f"policy.path={policy}", *overrides))
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def poison(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """One gradient of these minibatches of the run, counted from 0, is NaN; their loss is finite."""
    original, done = Updater._accumulate, iter(range(10_000))

    def poisoned(self: Updater, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        if next(done) in bad:
            grad = next(self._scorer.policy.parameters()).grad
            assert grad is not None
            grad.view(-1)[3] = float("nan")
        return found

    patch.setattr(Updater, "_accumulate", poisoned)


class Watch(RolloutCallback):
    """Keeps the module."""

    module: Any = None

    def on_rollout(self, trainer: Any, module: Any, step: Any) -> None:
        self.module = module

    def state(self) -> dict[str, Any]:
        optimizer, schedule = self.module.optimizers().optimizer, self.module.lr_schedulers()
        weights = {name: value.clone() for name, value in self.module.policy.state_dict().items()}
        return {"weights": weights, "adam": deepcopy(optimizer.state_dict()), "schedule": schedule.state_dict()}


def test_a_step_that_is_not_finite_moves_nothing(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches 1 and 2 of four: the weights before and after them are those after minibatch 0."""
    poison(monkeypatch, {1, 2})
    watch = Watch()
    monkeypatch.setattr(
        "src.training.run.instantiate_callbacks", lambda config: [watch, *instantiate_callbacks(config)]
    )
    states: list[dict[str, Any]] = []
    original: Callable[..., bool] = StepGuard.allows

    def watched(self: StepGuard, loss: float, grad_norm: float) -> bool:
        states.append(watch.state())  # before the step
        return original(self, loss, grad_norm)

    monkeypatch.setattr(StepGuard, "allows", watched)
    found = run(tmp_path, random_policy, "updates.prompts_per_minibatch=1", "sampling.n=8")
    start, before, between, after = states
    torch.testing.assert_close(between, before, rtol=0, atol=0)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not torch.equal(start["weights"]["model.lm_head.weight"], before["weights"]["model.lm_head.weight"])
    assert before["schedule"]["last_epoch"] == 1 and watch.state()["schedule"]["last_epoch"] == 2
    assert all(parameter.isfinite().all() for parameter in watch.module.policy.parameters())
    events = [line for line in found if line["event"] == "skipped_step"]
    assert [(event["rollout_step"], event["minibatch"], event["in_a_row"]) for event in events] == [
        (0, 1, 1),
        (0, 2, 2),
    ]
    (step,) = [line for line in found if line["event"] == "rollout_step"]
    assert step["train/skipped"] == 2 and step["train/grad_norm"] > 0


def test_a_step_without_any_update_has_no_loss_and_the_run_goes_on(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {0, 1})
    found = run(tmp_path, random_policy, "updates.rollout_steps=2", "trainer.val_check_interval=2")
    first, second = [line for line in found if line["event"] == "rollout_step"]
    assert first["train/skipped"] == 2 and second["train/skipped"] == 0
    assert "train/loss" not in first and "train/entropy" not in first and "reward/total" in first
    assert "train/loss" in second


def test_too_many_in_a_row_stop_the_run(random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad, good, bad, bad with two allowed: the fourth minibatch ends it."""
    poison(monkeypatch, {0, 2, 3})
    message = r"rollout step 0: loss .*, gradient norm nan.*skipped in a row: 2 \(updates.max_bad_steps=2\)"
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, random_policy, "updates.prompts_per_minibatch=1", "updates.max_bad_steps=2")
    events = [line for line in lines(tmp_path) if line["event"] == "skipped_step"]
    assert [event["in_a_row"] for event in events] == [1, 1, 2]


def test_a_saved_minibatch_of_episodes_is_read_back(tmp_path: Path) -> None:
    # the prompt 5; one answer of 7, 8 after the observed 6, and one whose history was rewritten: 9, then 3 after 2
    tree = Tree(
        *map(torch.tensor, ([6, 7, 8, 9, 2, 3], [False, True, True, True, False, True], [3, 1, 2])),
        *map(torch.tensor, ([-1, -1, -1], [0, 1, 1])),
    )
    numbers = torch.arange(4.0)
    group = PromptGroup(
        torch.tensor([5]),
        torch.tensor([7, 8, 9, 3]),
        torch.tensor([2, 2]),
        numbers,
        torch.zeros(4, dtype=torch.long),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -1.0]),
        numbers,
        credit=numbers,
        tree=tree,
    )
    Minibatch([group], LossCounts(2, 4, 4.0), True, 1.0, 3, 0).save(tmp_path / "bad.safetensors")
    (found,) = Minibatch.load(tmp_path / "bad.safetensors").groups
    assert found.tree is not None and found.old_logprobs is None
    assert [getattr(found.tree, f.name).tolist() for f in fields(Tree)] == [
        [6, 7, 8, 9, 2, 3],
        [False, True, True, True, False, True],
        [3, 1, 2],
        [-1, -1, -1],
        [0, 1, 1],
    ]
    assert found.token_ids.tolist() == [7, 8, 9, 3] and found.credit.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_saved_minibatch_can_be_computed_again(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first minibatch of a run, from the policy that the run started from; only so many are saved."""
    poison(monkeypatch, {0, 1})
    settings = ("updates.save_bad_steps=1", "algorithm=grpo", "algorithm.loss.entropy_coef=0.1")
    skipped = [line for line in run(tmp_path, random_policy, *settings) if line["event"] == "skipped_step"]
    (path,) = (tmp_path / "bad_minibatches").iterdir()
    assert [line.get("saved") for line in skipped] == [path.name, None]
    saved = Minibatch.load(path)
    assert (saved.rollout_step, saved.minibatch, saved.first) == (0, 0, True)
    assert len(saved.groups) == 2 and saved.counts.num_sequences == 8
    config = train_config(tmp_path, *SETTINGS, *settings, f"policy.path={random_policy}")
    policy = load_policy(instantiate(config.policy)).policy
    loss = PolicyLoss(LossInputs.of(saved.groups, first=True), PolicyLossConfig(entropy_coef=0.1), saved.counts)
    found = policy(pack(saved.groups), temperature=saved.temperature, loss=loss).loss
    assert float(found.detach()) == pytest.approx(saved.loss, abs=1e-6) and abs(saved.loss) > 0.1
    assert saved.grad_norm != saved.grad_norm


def test_other_files_are_refused(random_policy: Path) -> None:
    with pytest.raises(ValueError, match="expected a minibatch saved by a training run, found no 'minibatch'"):
        Minibatch.load(random_policy / "model.safetensors")


def test_a_full_disk_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad_minibatches").write_text("in the way")
    guard = StepGuard(max_bad_steps=3, max_saved=3)
    assert guard.keep(Minibatch([], LossCounts(1, 1, 1), True, 1.0, 0, 0, 1.0, 1.0), tmp_path, 0) is None
    assert "cannot be saved" in caplog.text


def test_counts_continue() -> None:
    guard, resumed = StepGuard(3, 3), StepGuard(3, 3)
    assert [guard.allows(*values) for values in ((1.0, 1.0), (float("inf"), 1.0), (1.0, float("nan")))] == [
        True,
        False,
        False,
    ]
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.skipped, resumed.in_a_row) == (2, 2)
    assert resumed.allows(0.0, 0.0) and resumed.in_a_row == 0 and resumed.skipped == 2


@pytest.mark.parametrize(("name", "value"), [("max_bad_steps", 0), ("save_bad_steps", -1)])
def test_settings_are_checked(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"updates\.{name}: expected at least"):
        UpdateSettings(1, 1, **{name: value})
