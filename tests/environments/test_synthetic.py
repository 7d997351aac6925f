"""The synthetic world answers as the corpus does."""

import json

import pytest

from src.data.sources.composed.source import ComposedSource
from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import SyntheticSource, execute
from src.environments.synthetic import SyntheticWorld, composed_world, synthetic_world
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall


def test_results_and_observations_are_the_corpus():
    """Every observation of the corpus is what the world of its dialogue says to the calls before it."""
    seen = 0
    for _, (dialogue, _) in zip(range(300), SyntheticSource(seed=5).dialogues("train"), strict=False):
        world = SyntheticWorld(dialogue.tools)
        for step, message in zip(dialogue.messages, dialogue.messages[1:], strict=False):
            if message.role == "observation":
                assert world.observations(step.calls, world.run(step.calls)) == (Message("observation", message.text),)
                seen += 1
    assert seen > 30


def test_a_call_of_what_is_not_on_offer_is_an_error():
    world = synthetic_world(["weather"])
    call = ToolCall("get_weather", {"city": "Oslo", "day": "May 1"})
    other = TRAINING_DOMAINS["restaurants"][0].name
    found = world.run([call, ToolCall(other, {})])
    assert list(map(json.loads, found)) == [execute(call, TRAINING_DOMAINS), {"error": f"no tool {other}"}]
    assert {tool.name for tool in world.tools} == {tool.name for tool in TRAINING_DOMAINS["weather"]} and world.hint


@pytest.mark.parametrize(("domains", "message"), [(["wether"], "Did you mean weather"), ([], "found none")])
def test_unknown_domains_are_refused(domains, message):
    with pytest.raises(ConfigError, match=message):
        synthetic_world(domains)


def test_the_composed_world_answers_its_own_request():
    """The tools are those of an unseen prompt; the same call always gets the same answer, another one another."""
    world = composed_world(seed=0)
    (example,) = ComposedSource(num_val=1, kinds={"single": 1.0}).load("val_unseen")
    assert (world.tools, world.hint) == (example.tools, example.history[0].text)
    (call,) = example.target.calls
    other = ToolCall(call.name, {key: "else" for key in call.parameters})
    first, again, third, unknown = world.run([call, call, other, ToolCall("get_whether", {})])
    assert first == again != third and unknown == '{"error": "no tool get_whether"}'
    ((key, value),) = json.loads(first).items()
    assert isinstance(value, str) and key != value
