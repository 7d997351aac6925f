"""BFCL's multi-turn cases as episodes, against the official checker: gold plays pass, others do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from src.environments.bfcl.cases import load_cases
from src.environments.bfcl.environment import BfclEnvironment, BfclEpisode
from src.environments.protocol import Task
from src.errors import ConfigError
from src.protocol.dialogue import ToolCall
from src.protocol.types import ParsedResponse
from tests.environments.bfcl.gold import gold_turns

CASES = {case.id: case for case in load_cases("multi_turn_base")[:4]}


@pytest.fixture(scope="module")
def environment() -> Iterator[BfclEnvironment]:
    environment = BfclEnvironment(["multi_turn_base"], time_limit=60.0)
    yield environment
    environment.close()


def said(calls: Sequence[ToolCall] | None) -> ParsedResponse:
    """An answer with calls; without any; or None, with calls that cannot be read."""
    fields = ("response",) if calls is not None and not calls else ("tool_call",)
    return ParsedResponse(fields, (True,), None, None if calls is None else tuple(calls), None, (), 0)


def played(episode: BfclEpisode, turns: Sequence[Sequence[Sequence[ToolCall]]]) -> BfclEpisode:
    """Each turn's steps, then words."""
    for steps in turns:
        assert episode.observe()[-1].role == "user"
        for calls in steps:
            episode.act(said(calls))
            results = episode.observe()
            assert [message.name for message in results] == [call.name for call in calls]
        episode.act(said(()))
    return episode


@pytest.mark.parametrize("case", CASES)
def test_gold_plays_pass(case: str, environment: BfclEnvironment) -> None:
    gold = gold_turns(CASES[case])
    episode = played(environment.start(Task(case, {"case": case}), 0), gold)
    score = episode.score()
    answers = sum(len(steps) + 1 for steps in gold)
    assert episode.done and score.success
    assert (score.total, score.parts, score.turns) == (1.0, {"passed": 1.0}, (*[0.0] * (answers - 1), 1.0))


def test_a_play_without_calls_or_without_an_end_fails(environment: BfclEnvironment) -> None:
    case = next(iter(CASES))
    silent = played(environment.start(Task(case, {"case": case}), 0), [[] for _ in CASES[case].question])
    assert silent.done and silent.score().total == 0.0
    stopped = environment.start(Task(case, {"case": case}), 0)
    stopped.act(said(gold_turns(CASES[case])[0][0]))
    assert not stopped.done and stopped.score().turns == (0.0,)


def test_calls_that_cannot_be_read_are_answered(environment: BfclEnvironment) -> None:
    case = next(iter(CASES))
    episode = environment.start(Task(case, {"case": case}), 0)
    episode.observe()
    episode.act(said(None))
    (message,) = episode.observe()
    assert (message.role, message.text) == ("observation", '{"error": "the calls cannot be read"}')
    assert episode.counts["malformed"] == 1 and not episode.done


def test_the_test_cases_are_trained_on_only_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert BfclEnvironment().splits() == ("test",)
    assert len(BfclEnvironment(["multi_turn_base"]).tasks("test")) == 200
    with pytest.raises(ConfigError, match=r"set environment\.train_on_test=true"):
        BfclEnvironment().tasks("train")
    asked = BfclEnvironment(["multi_turn_base"], train_on_test=True)
    train, val = ({task.id for task in asked.tasks(split)} for split in asked.splits())
    assert (len(train), len(val), train & val) == (180, 20, set())
    assert "Training on BFCL's test cases" in caplog.text


def test_refuses_cases_of_a_single_turn() -> None:
    with pytest.raises(ConfigError, match=r"environment\.categories: expected multi-turn ones, found java"):
        BfclEnvironment(["java", "multi_turn_base"])
