"""Where groups come from: dynamic sampling with scripted rewards, and targets as groups."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.algorithm.policy_loss import PolicyLossConfig
from src.algorithm.region_weights import RegionWeighting
from src.protocol.types import Region
from src.training.objective import Imitation, PolicyGradient, with_prompt
from src.training.ranks import Ranks
from src.training.settings import AlgorithmSettings, SupervisedSettings
from tests.training.fakes import group


class Scripted:
    """A sampler whose groups teach or do not, by the prompt's id."""

    rollout_step = 3
    params = SimpleNamespace(temperature=0.0)

    def __init__(self, teaching: set[str]) -> None:
        self.teaching, self.asked = teaching, []  # type: ignore[var-annotated]

    def sample(self, prompts: Any) -> list[Any]:
        self.asked.append([prompt.example.id for prompt in prompts])
        return [SimpleNamespace(id=p.example.id, teaches=p.example.id in self.teaching) for p in prompts]


def prompts(*ids: str) -> list[Any]:
    return [SimpleNamespace(example=SimpleNamespace(id=one)) for one in ids]


def objective(rounds: int, draw: Any = None) -> PolicyGradient:
    settings = AlgorithmSettings("grpo", RegionWeighting(), PolicyLossConfig(), resample_rounds=rounds)
    return PolicyGradient(settings, Ranks(), draw)


def test_without_rounds_groups_stay_as_they_were_sampled():
    sampler = Scripted({"a"})
    found = objective(0).groups(prompts("a", "b"), sampler)  # type: ignore[arg-type]
    assert [one.id for one in found.scored] == ["a", "b"] and found.resampled == 0 and sampler.asked == [["a", "b"]]


def test_groups_that_teach_nothing_are_replaced_for_a_few_rounds():
    """b and c teach nothing; of the two that are drawn for them d does and takes b's place; then e takes c's."""
    drawn = []

    def draw(count: int, key: str, exclude: Any) -> list[Any]:
        drawn.append((count, key, set(exclude)))
        return prompts("d", "x") if key.endswith("/0") else prompts("e")

    sampler = Scripted({"a", "d", "e"})
    found = objective(5, draw).groups(prompts("a", "b", "c"), sampler)  # type: ignore[arg-type]
    assert [one.id for one in found.scored] == ["a", "d", "e"] and found.resampled == 2
    assert drawn == [(2, "3/0", {"a", "b", "c"}), (1, "3/1", {"a", "b", "c", "d", "x"})]
    assert sampler.asked == [["a", "b", "c"], ["d", "x"], ["e"]]


def test_a_greedy_samplers_log_probabilities_are_unscaled():
    assert objective(0).temperature(Scripted(set())) == 1.0  # type: ignore[arg-type]


def test_metrics_say_how_many_groups_teach_and_were_replaced():
    groups = [group([[1], [2]], [0.0, 0.0]), group([[1], [2]], [2.0, 0.0])]
    assert objective(0).metrics(groups, 1) == {
        "group/zero_variance": [1.0, 0.0],
        "group/zero_advantage": [1.0, 0.5],
        "group/reward_std": [0.0, 1.0],
        "group/resampled": [1.0, 0.0],
    }


def test_a_prompt_can_be_learnt_too():
    """Prompt [7, 8, 9], completion [1, 2], weight 0.2; the prompt's first token has nothing before it."""
    whole = with_prompt(group([[1, 2]], [0.0], prompt=[7, 8, 9]), 0.2)
    assert whole.prompt_ids.tolist() == [7] and whole.token_ids.tolist() == [8, 9, 1, 2]
    assert whole.lengths.tolist() == [4] and whole.rollout_logprobs.tolist() == [0.0, 0.0, -1.0, -1.0]
    torch.testing.assert_close(whole.weights, torch.tensor([0.2, 0.2, 1.0, 1.0]))
    assert whole.regions.tolist() == [Region.OTHER, Region.OTHER, 0, 0]


def test_a_prompts_weight_is_a_share():
    with pytest.raises(ValueError, match=r"prompt_weight: expected a value in \[0, 1\], found 1.5"):
        Imitation(SupervisedSettings("sft", RegionWeighting()), None, 1.5)  # type: ignore[arg-type]
