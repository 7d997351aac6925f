"""A run that is stopped and goes on is the run that nobody stopped; the best is remembered wherever it goes on."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.callbacks.checkpoint import CheckpointWriteError, RolloutCheckpoint
from src.config.instantiating import instantiate_callbacks
from src.runs.signals import EXIT_SAVED, StoppedError
from src.train import train
from src.training.step import RolloutCallback
from tests.conftest import SMALL, train_config
from tests.faults.states import differences

SETTINGS = (
    *SMALL,
    "updates.rollout_steps=5",
    "data.train.num_train=9",  # two rollout steps an epoch
    "trainer.val_check_interval=3",
    "reward._target_=tests.wings.reporting.live.drawing_reward.DrawingReward",
    "algorithm.weighting.initialiser=inverse_entropy",
    "callbacks.curriculum.measure_steps=3",
    "optimizer.schedule=cosine",
    "optimizer.learning_rate=1.0e-3",
    "sampling.n=4",
)


class Probe(RolloutCallback):
    """Sends this process a signal in the middle of a rollout step."""

    def __init__(self, step: int, number: int) -> None:
        self._step, self._number = step, number

    def on_rollout(self, trainer, module, step) -> None:
        if step.index + 1 == self._step:
            os.kill(os.getpid(), self._number)


def run(folder: Path, policy: Path, *overrides: str, stop: tuple[int, int] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if stop is not None:
            patch.setattr("src.training.run.instantiate_callbacks", lambda c: [Probe(*stop), *instantiate_callbacks(c)])
        train(train_config(folder, *SETTINGS, f"policy.path={policy}", *overrides))


def test_stopped_in_every_rollout_step_and_resumed_it_is_the_uninterrupted_run(random_policy, tmp_path, caplog):
    """The end of an epoch, a validation and the measurement of Eq. 9 are among the places where it is stopped."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    run(tmp_path / "whole", random_policy)
    for step, number in ((1, signal.SIGTERM), (2, signal.SIGUSR1), (3, signal.SIGTERM), (4, signal.SIGUSR1)):
        with pytest.raises(StoppedError) as stopped:
            run(tmp_path / "stopped", random_policy, "ckpt_path=auto", stop=(step, number))
        assert stopped.value.code == EXIT_SAVED == 75
        assert f"Stopped after rollout step {step};" in caplog.text
    run(tmp_path / "stopped", random_policy, "ckpt_path=auto")
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    whole, stopped = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped"))
    assert stopped["resumed_from"].endswith("stopped/checkpoints/last.ckpt")
    for key in ("start", "final", "best_checkpoint", "rollout_steps", "optimizer_steps"):
        assert stopped[key] == whole[key], key
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before

    run(tmp_path / "stopped", random_policy, "ckpt_path=auto")  # of a finished run: nothing is left to do
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []

    last, rollouts = tmp_path / "stopped/checkpoints/last.ckpt", tmp_path / "stopped/rollouts.jsonl"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["policy.model.model.norm.weight"][3] += 1e-6
    torch.save(content, last)
    rollouts.write_text("".join(rollouts.read_text().splitlines(keepends=True)[1:]))
    found = differences(tmp_path / "whole", tmp_path / "stopped")  # which sees what there is to see
    assert found[:2] == ["last.ckpt model", "rollouts.jsonl: 19 lines instead of 20"]


def test_auto_starts_anew_where_there_is_no_checkpoint(random_policy, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "validation", "rollout_step": 0}\n{"event": "rol')
    run(tmp_path, random_policy, "ckpt_path=auto", "updates.rollout_steps=1", "trainer.val_check_interval=1")
    events = [json.loads(line)["event"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event for event in events if event != "alarm"] == ["validation", "rollout_step", "validation"]


def checkpoint(folder: Path) -> RolloutCheckpoint:
    return RolloutCheckpoint(
        dirpath=str(folder), filename="best", monitor="val/exact_match", mode="max", save_last=True
    )


def test_the_best_is_remembered_in_another_folder_and_in_a_moved_one(tmp_path):
    old = checkpoint(tmp_path / "old/checkpoints")
    best = str(tmp_path / "old/checkpoints/best.ckpt")
    old.best_model_score = old.kth_value = old.current_score = torch.tensor(0.5)
    old.best_model_path = old.kth_best_model_path = best
    old.best_k_models = {best: torch.tensor(0.5)}
    state = old.state_dict()
    assert str(tmp_path) not in str(state)  # it can be shown, and moved
    for loaded, folder in (("old", "old"), ("old", "new"), ("moved", "moved")):
        found = checkpoint(tmp_path / folder / "checkpoints")
        trainer = SimpleNamespace(ckpt_path=tmp_path / loaded / "checkpoints/last.ckpt")
        found.on_load_checkpoint(trainer, None, {})
        found.load_state_dict(state)
        path = str(tmp_path / loaded / "checkpoints/best.ckpt")
        assert found.best_model_path == found.kth_best_model_path == path
        assert found.best_k_models == {path: torch.tensor(0.5)} and found.best_model_score == found.kth_value == 0.5
        assert found.last_model_path == ""


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error_and_the_one_before_stays(random_policy, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.callbacks.checkpoint.seal", full)
        with pytest.raises(CheckpointWriteError, match=r"last.ckpt' could not be written: .*No space left.*as it was"):
            run(tmp_path, random_policy, "callbacks.checkpoint.every_n_rollout_steps=1")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt.partial"]


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="every_n_rollout_steps: expected at least 1, found 0"):
        RolloutCheckpoint(every_n_rollout_steps=0)


def test_a_checkpoint_of_the_whole_run_that_a_kill_left_unnamed_is_named(random_policy, tmp_path):
    """Killed between sealing the last one and giving it its name: nothing is left to train, and it is the last one."""
    settings = (*SMALL, f"policy.path={random_policy}", "updates.rollout_steps=1", "ckpt_path=auto")
    train(train_config(tmp_path, *settings))
    last = tmp_path / "checkpoints/last.ckpt"
    whole = last.read_bytes()
    last.rename(last.with_name("last.ckpt.partial"))
    train(train_config(tmp_path, *settings))
    assert last.read_bytes() == whole and not last.with_name("last.ckpt.partial").exists()
