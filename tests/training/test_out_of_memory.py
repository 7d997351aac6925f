"""Memory that runs out in the update: a device that takes rows of so many tokens gives the gradients of any other."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from src.config.guard import Ways
from src.models.policy import Policy
from src.models.structure import decoder_of
from src.train import train
from src.training import run as program
from tests.conftest import train_config
from tests.models.reference import replay_completions
from tests.training.test_step_guard import SETTINGS

FULL = "simulated: out of memory"
TWO_STEPS = ("updates.rollout_steps=2", "trainer.val_check_interval=2", "sampling.max_new_tokens=40")


class Made(NamedTuple):
    """What a run did: gradients of every optimizer step, lines of metrics.jsonl, tokens of its longest row."""

    gradients: list[list[torch.Tensor]]
    lines: list[dict[str, Any]]
    longest: int

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


@pytest.fixture(autouse=True)
def uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison at the start would meet the injected faults first."""
    monkeypatch.setattr(program, "check_policy_and_engine", lambda *_: None)


def run(folder: Path, policy: Path, *overrides: str, limit: int = 10**9, backward: bool = False) -> Made:
    """Train on a device that takes rows of `limit` tokens, or runs out in the middle of the backward of longer ones."""
    forward, clip = Policy.forward, torch.nn.utils.clip_grad_norm_
    gradients: list[list[torch.Tensor]] = []
    sizes: list[int] = []

    def limited(self: Policy, row: Any, **kwargs: Any) -> Any:
        sizes.append(len(row.input_ids))
        full = sizes[-1] > limit
        if full and not (backward and torch.is_grad_enabled()):
            raise torch.OutOfMemoryError(FULL)
        scores = forward(self, row, **kwargs)
        if full:  # once head and last layer have their gradients
            handle = decoder_of(self.model).layers[0].mlp.down_proj.weight.register_hook(lambda _: fail(handle))
        return scores

    def fail(handle: Any) -> None:
        handle.remove()
        raise torch.OutOfMemoryError(FULL)

    def noting(parameters: Any, *args: Any) -> Any:
        parameters = list(parameters)
        gradients.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, *args)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "forward", limited)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", noting)
        train(train_config(folder, *SETTINGS, f"policy.path={policy}", "optimizer.learning_rate=1.0e-6", *overrides))
    return Made(
        gradients, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], max(sizes)
    )


@pytest.fixture(scope="module")
def whole(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        replay_completions(patch)  # the runs after this one
        yield run(tmp_path_factory.mktemp("whole") / "run", random_policy, *TWO_STEPS)


@pytest.mark.parametrize(("share", "backward"), [(0.6, False), (0.6, True), (0.4, True)])
def test_shorter_rows_give_the_same_gradients(
    share: float, backward: bool, whole: Made, random_policy: Path, tmp_path: Path
) -> None:
    """At 0.6 of a minibatch's tokens its two groups part; at 0.4 the completions of a group do."""
    limit = int(share * whole.longest)
    made = run(tmp_path / "limited", random_policy, *TWO_STEPS, limit=limit, backward=backward)
    assert len(made.gradients) == len(whole.gradients) == 4
    for found, expected in zip(made.gradients, whole.gradients, strict=True):
        for one, other in zip(found, expected, strict=True):
            # below 0.05, and equal to 2e-5 of that (see `TOLERANCE` in reference.py)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for found, expected in zip(made.events("rollout_step"), whole.events("rollout_step"), strict=True):
        timeless = {key: value for key, value in expected.items() if not key.startswith("time/")}
        assert {key: found[key] for key in timeless} == pytest.approx(timeless, abs=1e-5)
    budgets = [event["max_row_tokens"] for event in made.events("out_of_memory")]
    assert budgets and all(later <= earlier // 2 for earlier, later in pairwise([whole.longest, *budgets]))


def test_a_completion_that_does_not_fit_is_an_error_with_advice(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "find_ways", lambda *_: Ways("packed", "shared"))  # which runs rows too
    with pytest.raises(torch.OutOfMemoryError, match=r"one completion in each row.*max_new_tokens.*checkpoint"):
        run(tmp_path / "run", random_policy, limit=3)
