"""Sampled completions to scored groups: whose text, prefix, target and regions go together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from src.data.rendering import RenderedPrompt
from src.protocol.dialogue import Message, TurnExample
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rewards.functions.user_function import RewardError
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector, StaleRolloutError
from src.rollout.engine import Completion, SamplingParams

TABLE = TokenBytes((b"<think>", b"a", b"b", b"</think>", b"<response>c</response>", b"<eos>"))
EOS = 5
WRITTEN = [[[0, 1, 3, 4, EOS], [0, 1, 3]], [[2, 3, 4, EOS], [3, 4], [EOS]]]


class GivenEngine:
    """Answers each prompt with the same completions, whatever is asked."""

    def __init__(self, written: list[list[list[int]]], version: int = 2) -> None:
        self._groups = [
            [Completion(torch.tensor(ids), torch.zeros(len(ids)), "stop", version) for ids in group]
            for group in written
        ]

    def generate(self, *args: object) -> list[list[Completion]]:
        return self._groups


def prompt(name: str, prefix: str, text: str = "c") -> RenderedPrompt:
    return RenderedPrompt(torch.tensor([1]), prefix, TurnExample((), (), Message("assistant", text), "doc", name))


PROMPTS = [prompt("one", ""), prompt("two", "<think>")]


def collector(engine: GivenEngine, tagger: object = None) -> Collector:
    return Collector(engine, ToolCallReward(scaling="constant"), TABLE, (EOS,), tagger)  # type: ignore[arg-type]


def test_each_completion_is_read_with_its_own_prompt() -> None:
    groups = collector(GivenEngine(WRITTEN)).collect(PROMPTS, SamplingParams(), 0, 2, 0.0)
    assert [group.prompt.example.id for group in groups] == ["one", "two"]
    texts = [[item.decoded.text for item in group.completions] for group in groups]
    answer = "</think><response>c</response>"
    assert texts == [["<think>a" + answer, "<think>a</think>"], ["<think>b" + answer, "<think>" + answer, "<think>"]]
    ids = [[item.completion.token_ids.tolist() for item in group.completions] for group in groups]
    assert ids == WRITTEN
    # Constant ranges: format 0 or 1, correctness 3 where no call is made; the format needs both fields.
    assert [group.rewards.tolist() for group in groups] == [[4.0, 3.0], [4.0, 4.0, 3.0]]
    assert groups[1].completions[0].decoded.regions.tolist() == [Region.REASONING, *[Region.FORMAT] * 3]
    experience = groups[0].to_experience("dr_grpo", 0.0)
    assert experience.lengths.tolist() == [5, 3]
    assert experience.advantages.tolist() == [0.5, -0.5]


def test_a_tagger_takes_the_place_of_the_regions() -> None:
    def others(token_ids: Tensor) -> Tensor:
        return torch.full_like(token_ids, Region.OTHER)

    groups = collector(GivenEngine(WRITTEN), others).collect(PROMPTS, SamplingParams(), 0, 2, 0.0)
    assert all((item.decoded.regions == Region.OTHER).all() for group in groups for item in group.completions)


def test_what_was_cut_off_matches_nothing_exactly() -> None:
    """The same tokens twice: one completion ended, the other was cut where it might have gone on."""
    whole = Completion(torch.tensor([0, 1, 3, 4]), torch.zeros(4), "stop", 2)
    engine = GivenEngine([])
    engine._groups = [[whole, replace(whole, finish_reason="length")]]
    (group,) = collector(engine).collect(PROMPTS[:1], SamplingParams(), 0, 2, 0.0)
    assert [item.reward.parts.exact_match for item in group.completions] == [1.0, 0.0]
    assert group.rewards.tolist() == [4.0, 4.0]  # the reward is of what was written


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_example(total: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = collector(GivenEngine(WRITTEN))
    reward = ToolCallReward.__call__
    monkeypatch.setattr(ToolCallReward, "__call__", lambda *a, **k: replace(reward(*a, **k), total=total))
    with pytest.raises(RewardError, match=rf"found {total} for example 'doc/one' and the response '<think>a</think>"):
        scored.collect(PROMPTS, SamplingParams(), 0, 2, 0.0)


def test_demonstrations_are_scored_alike() -> None:
    sampled = collector(GivenEngine([[WRITTEN[0][0]], [WRITTEN[1][0]]])).collect(PROMPTS, SamplingParams(), 0, 2, 0.0)
    targets = [torch.tensor(WRITTEN[0][0]), torch.tensor(WRITTEN[1][0])]
    given = collector(GivenEngine([])).demonstrate(PROMPTS, targets, 2, 0.0)
    for group, other in zip(sampled, given, strict=True):
        assert group.completions[0].reward == other.completions[0].reward
        assert group.completions[0].decoded.text == other.completions[0].decoded.text


def test_completions_of_other_weights_are_an_error() -> None:
    with pytest.raises(StaleRolloutError, match="expected completions from weights version 3, found 2"):
        collector(GivenEngine(WRITTEN)).collect(PROMPTS, SamplingParams(), 0, 3, 0.0)
