"""Turn splitting on dialogues written by hand."""

import pytest

from src.protocol.dialogue import DataError, Dialogue, Message, ToolCall, ToolSpec, split_turns

TOOLS = (ToolSpec.of("get_weather", "Weather of a city.", {"city": {"type": "string"}}),)
ASK = Message("user", "Weather in Oslo and Rome?")
CALL = Message("assistant", calls=(ToolCall("get_weather", {"city": "Oslo"}),), thought="Look it up.")
SEEN = Message("observation", '{"sky": "clear"}')
ANSWER = Message("assistant", "Clear in Oslo.", thought="Report it.")
MORE = Message("user", "And in Rome?")
CALL_ROME = Message("assistant", calls=(ToolCall("get_weather", {"city": "Rome"}),))


def dialogue(*messages: Message) -> Dialogue:
    return Dialogue(TOOLS, messages, "hand", "7")


def test_each_assistant_step_is_one_example_with_everything_before_it() -> None:
    messages = (ASK, CALL, SEEN, ANSWER, MORE, CALL_ROME)
    examples = split_turns(dialogue(*messages))

    assert [example.target for example in examples] == [CALL, ANSWER, CALL_ROME]
    assert [example.history for example in examples] == [messages[:1], messages[:3], messages[:5]]
    assert [example.id for example in examples] == ["7/0", "7/1", "7/2"]
    assert all(example.tools == TOOLS and example.source == "hand" for example in examples)


def test_an_observation_is_never_a_target() -> None:
    examples = split_turns(dialogue(ASK, CALL, SEEN, SEEN, ANSWER, MORE, CALL_ROME, SEEN))

    assert [example.target.role for example in examples] == ["assistant"] * 3
    assert SEEN not in [example.target for example in examples]
    assert examples[1].history == (ASK, CALL, SEEN, SEEN)


def test_a_response_right_after_calls_joins_their_step() -> None:
    note = Message("assistant", "One moment.", thought="Tell them.")
    (first, second) = split_turns(dialogue(ASK, CALL, note, SEEN, ANSWER))

    assert first.target == Message("assistant", "One moment.", "Look it up.\nTell them.", CALL.calls)
    assert first.history == (ASK,)
    assert second.history == (ASK, first.target, SEEN)  # the joined step is one message of the history, too


def test_calls_after_a_response_and_calls_after_calls_stay_two_steps() -> None:
    examples = split_turns(dialogue(ASK, ANSWER, CALL, CALL_ROME))

    assert [example.target for example in examples] == [ANSWER, CALL, CALL_ROME]


def test_a_dialogue_without_assistant_steps_has_no_examples() -> None:
    assert split_turns(dialogue(ASK, SEEN)) == []


@pytest.mark.parametrize(
    ("messages", "parts"),
    [
        ((ASK, Message("assistant")), ("hand[7]", "messages[1]", "calls or a response")),
        ((ANSWER, ASK), ("hand[7]", "messages[0]", "a user message before")),
    ],
    ids=["empty-step", "assistant-first"],
)
def test_a_step_that_cannot_be_learnt_is_refused(messages: tuple[Message, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        split_turns(dialogue(*messages))
    assert all(part in str(error.value) for part in parts)
