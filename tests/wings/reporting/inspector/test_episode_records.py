"""Episodes read back: each turn has its tokens, what it observed and what it earned."""

import pytest

from src.protocol.dialogue import ToolCall
from src.wings.reporting.inspector.comparing import Failure
from src.wings.reporting.inspector.episode_records import ObservedMessage, logged_episode
from src.wings.reporting.inspector.rollout_records import InspectorError, RolloutFile
from tests.wings.reporting.inspector.samples import episode, episode_record, run_folder


def test_turns_are_what_was_written(tmp_path):
    file = RolloutFile(run_folder(tmp_path, [episode_record(), episode_record(1, exact_match=1.0)]))
    (group,) = file.read(file.places)
    found = group.completions[0].episode
    assert (found.ending, found.rewrites, found.faults) == ("done", 1, {"malformed": 2, "tool_error": 1})
    first, second = found.turns
    assert (first.start, first.stop, second.start, second.stop) == (0, 3, 3, 5)
    assert first.observed == (ObservedMessage("user", "", "Weather in Oslo?"),)
    assert second.observed == (ObservedMessage("observation", "sky", "rain"),)
    assert (first.calls, second.calls) == ((ToolCall("sky", {"city": "Oslo"}),), ())
    assert [(turn.earned, turn.advantage) for turn in found.turns] == [(0.25, -0.5), (0.5, 1.5)]
    assert group.completions[0].scores == {"state": 1.0, "answer": 0.5}
    assert [group.failure(one) for one in group.completions] == [Failure.NOT_DONE, Failure.CORRECT]


def test_results_without_a_name_and_what_a_system_says():
    assert ObservedMessage("observation", "", "no such call").speaker == "result"
    assert ObservedMessage("system", "", "Be brief.").speaker == "system"
    assert logged_episode(episode(faults={}), 5).faults == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": []}, "found turns of 0 tokens in an episode of 5"),
        ({"ending": None}, "found None as ending of an episode"),
        ({"turns": [{"observed": [{"role": "user", "name": "", "text": 3}], "tokens": 5}]}, "found 3 as text"),
        ({"turns": [{"observed": [], "tokens": 5, "calls": [{"name": "sky"}]}]}, "found no 'arguments'"),
        ({"faults": [1]}, "expected a logged completion"),
    ],
)
def test_an_episode_that_is_none_is_named(changes, message, tmp_path):
    records = [episode_record(), episode_record(1, episode=episode(**changes))]
    file = RolloutFile(run_folder(tmp_path, records))
    with pytest.raises(InspectorError, match=f"line 2: .*{message}"):
        list(file.read(file.places))
