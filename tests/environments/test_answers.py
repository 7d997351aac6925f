"""Whatever is wrong with a call or a result is said in words and counted; results come in the order of the calls."""

import json
from dataclasses import replace

import pytest

from src.environments.answers import Result, ToolRunner, argument_problems, shortened
from src.environments.protocol import EpisodeScore
from src.environments.tool_episode import ToolEpisode, opening, read_tasks, row_files
from src.errors import ConfigError
from src.protocol.dialogue import DataError, Message, ToolCall, ToolSpec
from src.protocol.formats.known import NATIVE
from src.protocol.formats.rest import parse, step_text

WEATHER = ToolSpec(
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"], "nullable": True},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "names": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    }
)


def answer(*calls, text=""):
    return parse(step_text(Message("assistant", text, calls=calls)))


def runner(results=None, limit=200, hidden=()):
    return ToolRunner([WEATHER], results or (lambda calls: [Result(call.name) for call in calls]), limit, hidden)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"city": "Oslo"}, None),
        ({"city": "Oslo", "unit": None}, None),
        ({"city": "Oslo", "unit": "C", "days": 2, "where": {"lat": 1.5, "lon": 2}, "names": []}, None),
        ({}, "'city' is a required property"),
        ({"city": 5}, "city: 5 is not of type 'string'"),
        ({"city": None}, "city: None is not of type 'string'"),
        ({"city": "Oslo", "days": True}, "days: True is not of type 'integer'"),
        ({"city": "Oslo", "days": "2"}, "days: '2' is not of type 'integer'"),
        ({"city": "Oslo", "unit": "K"}, "unit: 'K' is not one of ['C', 'F']"),
        ({"city": "Oslo", "town": 1}, "no parameter 'town' (there are: city, days, unit, where, names)"),
        ({"city": "Oslo", "where": {}}, "where: 'lat' is a required property"),
        ({"city": "Oslo", "names": ["a", 1]}, "names[1]: 1 is not of type 'string'"),
        ({"city": "Oslo", "days": 10**5000}, "too large"),
        ({"city": "x" * 200_000}, "too large"),
    ],
)
def test_arguments_are_held_to_the_schema(arguments, words):
    found = "; ".join(argument_problems(WEATHER, ToolCall("weather", arguments)))
    assert (words in found) if words else found == ""


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"properties": None},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"type": "image"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
        {"type": "object", "properties": {"a": {"$ref": "http://nowhere.invalid/schema.json"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a*)*$"}}},
        {"type": "object", "properties": {"a": 3}},
        {"type": "object", "properties": {"a": {}}, "required": "a"},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
        {"a": {"description": "bare, as xLAM has it"}},
    ],
)
def test_a_schema_that_is_none_refuses_nothing(schema):
    tool = ToolSpec({"name": "t", "parameters": schema})
    problems = argument_problems(tool, ToolCall("t", {"a": "a" * 40 + "b"}))
    assert problems == ([] if schema else ["there is no parameter 'a' (there are: none)"]) or not schema.get(
        "properties"
    )


def test_a_schema_may_allow_other_parameters_of_a_type():
    tool = ToolSpec(
        {"function": {"name": "t", "parameters": {"type": "object", "additionalProperties": {"type": "integer"}}}}
    )
    assert argument_problems(tool, ToolCall("t", {"a": 1})) == []
    assert argument_problems(tool, ToolCall("t", {"a": "1"})) == ["a: '1' is not of type 'integer'"]


def test_a_schema_may_refer_to_its_own_definitions():
    point = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    schema = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Point"}}, "$defs": {"Point": point}}
    tool = ToolSpec({"name": "t", "parameters": schema})
    assert argument_problems(tool, ToolCall("t", {"at": {"x": 1}})) == []
    assert argument_problems(tool, ToolCall("t", {"at": {"x": "1"}})) == ["at.x: '1' is not of type 'number'"]


def test_observations_come_in_the_order_of_the_calls_and_only_good_calls_are_run():
    asked = []

    def run(calls):
        asked.extend(calls)
        return [Result(str(call.parameters["city"])) for call in calls]

    calls = [
        ToolCall("weather", {"city": "Oslo"}, "c1"),
        ToolCall("wether", {}, "c2"),
        ToolCall("weather", {}, "c3"),
        ToolCall("weather", {"city": "Rome"}, "c4"),
    ]
    tools = runner(run)
    observed = tools.observations(replace(answer(*calls), calls=tuple(calls)))
    assert asked == [calls[0], calls[3]]
    assert [(one.name, one.call_id) for one in observed] == [(call.name, call.id) for call in calls]
    assert [one.text for one in observed] == [
        "Oslo",
        "Error: there is no tool 'wether'. The tools are: weather.",
        "Error: wrong arguments for weather: 'city' is a required property.",
        "Rome",
    ]
    assert tools.counts == {"unknown_tool": 1, "wrong_arguments": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<tool_call>\nnot a call\n</tool_call>", "could not be read"),
        ('<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}\nx\n</tool_call>', "could not be read"),
        ("<tool_call>\n</tool_call>", "could not be read"),
        ('<tool_call>\n{"name": "weather"', "has no end"),
    ],
)
def test_calls_that_cannot_be_read_have_one_answer(text, words):
    tools = runner()
    (observed,) = tools.observations(parse(text))
    assert words in observed.text and observed.role == "observation" and tools.counts == {"malformed": 1}


@pytest.mark.parametrize("form", NATIVE, ids=lambda form: form.name)
def test_every_format_is_answered(form):
    call = Message("assistant", calls=(ToolCall("weather", {"city": "Oslo"}),))
    written = form.step_text(call).encode()
    assert [one.text for one in runner().observations(form.parse(written, [WEATHER]))] == ["weather"]
    tools = runner()
    tools.observations(form.parse(written[: len(written) * 2 // 3], [WEATHER]).cut())
    assert set(tools.counts) <= {"malformed"}


def test_an_answer_without_calls_has_no_observation():
    assert runner().observations(answer(text="Sunny.")) == runner().observations(parse("hm")) == ()


def test_results_are_cut_at_a_character_and_say_by_how_much():
    text = "é🙂" * 300
    (observed,) = (tools := runner(lambda calls: [Result(text)], limit=101)).observations(
        answer(ToolCall("weather", {"city": "Oslo"}))
    )
    assert observed.text == text[:101] + "\n… 499 of 600 characters left out."
    assert tools.counts == {"cut_result": 1}
    assert shortened("abc", 3) == ("abc", False)
    assert shortened("abc", 3, size=10**6) == ("abc\n… 999,997 of 1,000,000 characters left out.", True)


def test_lone_surrogates_never_reach_a_prompt():
    call = ToolCall("weather\ud800", {}, "\udfff")
    for message in runner().observations(replace(answer(call), calls=(call,))):
        json.dumps([message.text, message.name, message.call_id], ensure_ascii=False).encode()


def test_errors_hide_what_is_to_be_hidden():
    result = Result("Error: no file /home/me/run/x, key sk-12345", "tool_error")
    tools = runner(lambda calls: [result], hidden=["/home/me/run", "/home/me", "sk-12345", ""])
    (observed,) = tools.observations(answer(ToolCall("weather", {"city": "Oslo"})))
    assert observed.text == "Error: no file …/x, key …" and tools.counts == {"tool_error": 1}


class Scripted:
    """A connection with rewards in order."""

    hidden: list[str] = []

    def __init__(self, *rewards):
        self.rewards, self.lost, self.closed, self.heard = list(rewards), "", 0, []

    def run(self, calls):
        return [Result("fine") for _ in calls]

    def reward(self, history):
        self.heard = list(history)
        return self.rewards.pop(0)

    def close(self):
        self.closed += 1


def episode(connection, **options):
    options = {"result_limit": 100, "turn_rewards": False, "success_at": 1.0, **options}
    return ToolEpisode([WEATHER], [Message("user", "Oslo?")], connection, **options)


GOOD = ToolCall("weather", {"city": "Oslo"})


def test_the_last_answer_earns_it_all():
    played = episode(connection := Scripted(-2.5))
    assert [one.text for one in played.observe()] == ["Oslo?"] and played.observe() == ()
    played.act(answer(GOOD))
    assert not played.done and [one.text for one in played.observe()] == ["fine"]
    played.act(answer(text="Sunny."))
    assert played.done and played.observe() == ()
    assert played.score() == played.score() == EpisodeScore(-2.5, {"environment": -2.5}, (0.0, -2.5), False)
    assert [one.role for one in connection.heard] == ["user", "assistant", "observation", "assistant"]
    assert connection.heard[1].calls == (GOOD,) and connection.heard[3].text == "Sunny."


def test_turns_earn_the_differences():
    played = episode(Scripted(0.5, 0.25, 1.0), turn_rewards=True)
    for one in (answer(GOOD), answer(GOOD), answer(text="Sunny.")):
        played.act(one)
    assert played.score() == EpisodeScore(1.0, {"environment": 1.0}, (0.5, -0.25, 0.75), True)


def test_without_a_reward_of_its_own_an_episode_has_no_part():
    played = episode(Scripted(None))
    played.act(answer(text="Sunny."))
    assert played.score() == EpisodeScore(0.0, {}, (0.0,), False)


def test_an_episode_that_was_cut_in_its_first_answer_has_its_reward_too():
    """Else never ending would beat a reward below 0."""
    assert episode(Scripted(-1.0)).score() == EpisodeScore(-1.0, {"environment": -1.0}, (), False)
    assert episode(Scripted(-1.0), turn_rewards=True).score().total == -1.0


def test_none_says_nothing_new():
    played = episode(Scripted(1.0, None, None), turn_rewards=True)
    for one in (answer(GOOD), answer(GOOD), answer(text="Sunny.")):
        played.act(one)
    assert played.score() == EpisodeScore(1.0, {"environment": 1.0}, (1.0, 0.0, 0.0), True)


def test_an_episode_ends_with_its_world():
    played = episode(connection := Scripted(0.0))
    connection.lost = "timeout"
    played.act(answer(GOOD))
    assert played.done and [one.text for one in played.observe()] == ["fine"]


@pytest.mark.parametrize(
    ("prompt", "added", "expected"),
    [
        ("Oslo?", "", [("user", "Oslo?")]),
        ("Oslo?", " Now.", [("user", "Oslo? Now.")]),
        (None, "Go.", [("user", "Go.")]),
        (
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Oslo?"}],
            " Now.",
            [("system", "Be kind."), ("user", "Oslo? Now.")],
        ),
    ],
)
def test_prompts_are_text_or_messages(prompt, added, expected):
    assert [(one.role, one.text) for one in opening({"prompt": prompt}, "x", added)] == expected


@pytest.mark.parametrize(
    "prompt", [None, "", 5, [], [{"role": "assistant", "content": "Hi."}], [{"role": "user", "content": 5}], ["x"]]
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(DataError, match=r"x: field 'prompt"):
        opening({"prompt": prompt}, "x")


def test_rows_are_tasks(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "n": 1, "tags": ["hard"]}\n{"prompt": "b"}\n')
    (tmp_path / "b.json").write_text('[{"prompt": "c"}, {"n": 2}]')
    files = row_files({"train": str(tmp_path / "a.jsonl"), "val": str(tmp_path / "b.json")})
    tasks = read_tasks(files, "train", prompts=True)
    assert [(one.id, one.row["prompt"], one.tags) for one in tasks] == [("a-1", "a", ("hard",)), ("a-2", "b", ())]
    assert len(read_tasks(files, "val", prompts=False)) == 2
    with pytest.raises(DataError, match=r"b\.json\[1\]: field 'prompt'"):
        read_tasks(files, "val", prompts=True)
    with pytest.raises(ConfigError, match="Known here: train, val"):
        read_tasks(files, "nothing", prompts=True)
    with pytest.raises(ConfigError, match="expected a file for train"):
        row_files({"val": "x"})
    with pytest.raises(ConfigError, match=r"environment\.rows\.train: no file"):
        row_files(str(tmp_path / "c.jsonl"))
