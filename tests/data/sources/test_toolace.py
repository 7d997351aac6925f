"""ToolACE: the notation of its calls, and its records."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.data.sources.toolace import CallSyntaxError, ToolAceSource, looks_like_calls, parse_calls
from src.protocol.dialogue import THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE, DataError, Message, ToolCall


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[ping()]", [("ping", {})]),
        ('[Get Market Trends(type="INDEXES", n=3)]', [("Get Market Trends", {"type": "INDEXES", "n": 3})]),
        ("[products/v1.list( id = 'it''s' )]", None),
        ("[products/v1.list( id = 'it\\'s' )]", [("products/v1.list", {"id": "it's"})]),
        ('[a(x="1"), b-c(y=-2.5e3, z=+4)]', [("a", {"x": "1"}), ("b-c", {"y": -2500.0, "z": 4})]),
        (
            "[f(a=true, b=True, c=null, d=None, e=false, g=False)]",
            [("f", {"a": True, "b": True, "c": None, "d": None, "e": False, "g": False})],
        ),
        (
            '[f(l=[1, "b)", [2.5,],], o={"k": {"n": [true]}, \'m\': ()}, t=(1, 2))]',
            [("f", {"l": [1, "b)", [2.5]], "o": {"k": {"n": [True]}, "m": []}, "t": [1, 2]})],
        ),
        # the published mix cut this one at the first parenthesis of the string
        (
            '[createTable(columns="id int, name varchar(100), day date")]',
            [("createTable", {"columns": "id int, name varchar(100), day date"})],
        ),
        (
            r'[f(s="q\"q\n\t\\ \u00e9 \ud83d\ude00 \x41 \/ \d", e="😀 é", q="a=b, c(d)=[e]")]',
            [("f", {"s": 'q"q\n\t\\ é 😀 A / \\d', "e": "😀 é", "q": "a=b, c(d)=[e]"})],
        ),
        ('[\n  f(\n    x = 1 ,\n    filter[by]="z",\n  )\n]', [("f", {"x": 1, "filter[by]": "z"})]),
    ],
)
def test_calls_are_read(text: str, calls: list[tuple[str, dict[str, Any]]] | None) -> None:
    if calls is None:
        with pytest.raises(CallSyntaxError):
            parse_calls(text)
        return
    assert parse_calls(text) == (tuple(ToolCall(name, parameters) for name, parameters in calls), "")


def test_numbers_keep_their_type() -> None:
    ((call,), _) = parse_calls("[f(a=3, b=3.0, c=.5, d=12345678901234567890)]")

    assert [(type(value), value) for value in call.parameters.values()] == [
        (int, 3),
        (float, 3.0),
        (float, 0.5),
        (int, 12345678901234567890),
    ]


def test_a_known_name_may_hold_a_parenthesis() -> None:
    text = '[Rates (daily)(base="EUR"), Rates(base="USD")]'

    assert parse_calls(text, ["Rates", "Rates (daily)"])[0] == (
        ToolCall("Rates (daily)", {"base": "EUR"}),
        ToolCall("Rates", {"base": "USD"}),
    )


def test_text_behind_the_calls_is_returned() -> None:
    assert parse_calls("[f(x=1)]  Then I will sum up [1]. ")[1] == "Then I will sum up [1]."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[f("position")]', "a parameter as name=value at character 3, found '\"position\")]'"),
        ("[f(x=name)]", "a value (quoted string, number, true, false, null, list or object) at character 5"),
        ("[f(x=__import__('os'))]", "a value (quoted string"),
        ("[f(x=2024-01-01)]", "',' or ')' after a value at character 9, found '-01-01)]'"),
        ("[f(x=007)]", "a number without leading zeros, or a quoted string"),
        ("[f(x=1e999)]", "a finite number"),
        ("[f(x=1, x=2)]", "parameter 'x' once in a call"),
        ('[f(x="say "hi"")]', "',' or ')' after a value at character 11"),
        ('[f(x="open)]', "a closing quote at character 5"),
        ("[f(x=1), ", "a tool's name and '(' at the end of the text"),
        ("[f(x=1) g()]", "',' or ']' after a call at character 8, found 'g()]'"),
        ("[f(x=[1, 2)]", "',' or ']' after an item at character 10, found ')]'"),
        ("[f(x={a: 1})]", "a quoted key at character 6"),
        (f"[f(x={'[' * 5000})]", "at most 64 levels of brackets"),
        ("f(x=1)", "'[' at character 0"),
    ],
)
def test_what_is_not_the_notation_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(CallSyntaxError) as error:
        parse_calls(text)
    assert message in str(error.value)


def test_only_an_opening_bracket_with_a_name_and_a_parenthesis_looks_like_calls() -> None:
    assert looks_like_calls(' [Get It(x="1")]') and looks_like_calls("[f(broken")
    assert not any(
        map(looks_like_calls, ["[1] (a source)", "Use [f(x=1)].", "[note] f(x)", "[]", "[list, of] (words)"])
    )


TOOLS = [
    {
        "name": "Tide Times (v2)",
        "description": "Tides of a harbour.",
        "parameters": {
            "type": "dict",
            "properties": {"harbour": {"description": "Its name.", "type": "string"}, "days": {"type": "int"}},
            "required": ["harbour"],
        },
        "required": None,
    },
    {"name": "ferry.book", "description": "Books.", "parameters": {"type": "dict", "properties": {}}},
]
SYSTEM = (
    "You are an expert in composing functions. Answer with calls [like_this(a=1)] where one fits.\n"
    "Today is 2024-11-20, Wednesday. Here is a list of functions in JSON format that you can invoke:\n"
    f"{json.dumps(TOOLS)}. \nShould you decide to return the function call(s), put it in the format of "
    "[func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n"
)
TURNS = [
    {"from": "user", "value": "When can I leave Hull? Book me a ferry then."},
    {"from": "assistant", "value": '[Tide Times (v2)(harbour="Hull", days=2), ferry.book()] I am on it.'},
    {"from": "tool", "value": '[{"name": "Tide Times (v2)", "results": {"high": "06:10"}}]'},
    {"from": "assistant", "value": "High water is at 06:10."},
    {"from": "user", "value": "And a hotel?"},
    {"from": "assistant", "value": "None of the functions can be used for hotels."},
]


def record(system: Any = SYSTEM, turns: Any = TURNS) -> dict[str, Any]:
    return {key: value for key, value in {"system": system, "conversations": turns}.items() if value is not ...}


def load(folder: Path, *records: dict[str, Any], **options: Any) -> ToolAceSource:
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return ToolAceSource(path=str(path), **options)


def test_a_dialogue_becomes_one_example_a_step(tmp_path: Path) -> None:
    examples = load(tmp_path, record()).load("train")

    calls = (ToolCall("Tide Times (v2)", {"harbour": "Hull", "days": 2}), ToolCall("ferry.book", {}))
    assert [example.target for example in examples] == [
        Message("assistant", "I am on it.", THOUGHT_OF_CALLS, calls),
        Message("assistant", "High water is at 06:10.", THOUGHT_OF_RESPONSE),
        Message("assistant", "None of the functions can be used for hotels.", THOUGHT_OF_RESPONSE),
    ]
    assert [example.tags for example in examples] == [("call_and_response",), ("response",), ("response",)]
    assert [message.role for message in examples[1].history] == ["user", "assistant", "observation"]
    assert examples[1].history[2].text == TURNS[2]["value"]
    assert [tool.name for tool in examples[0].tools] == ["Tide Times (v2)", "ferry.book"]
    assert examples[0].tools[0].parameters == {
        "harbour": {"description": "Its name.", "type": "string"},
        "days": {"type": "int"},
    }


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": (record(turns=...), ("field 'conversations'", "a list under this key, found ['system']")),
    "no-tools": (record(system="You are kind."), ("field 'system'", "a JSON list of tools", "You are kind.")),
    "cut-tools": (record(system=SYSTEM[:-500]), ("field 'system'", "a JSON list of tools")),
    "type": (record(turns=["hello"]), ("field 'conversations[0]'", "expected an object, found 'hello'")),
    "value": (record(turns=[{"from": "user", "value": 3}]), ("field 'conversations[0].value'", "a string, found 3")),
    "role": (
        record(turns=[*TURNS, {"from": "gpt", "value": "x"}]),
        ("field 'conversations[6].from'", "'user', 'assistant' or 'tool', found 'gpt'"),
    ),
    "opening": (record(turns=TURNS[1:]), ("field 'conversations[0].from'", "a dialogue that a user opens")),
    "silent": (record(turns=TURNS[:1]), ("field 'conversations'", "at least one assistant message")),
    "call": (
        record(turns=[TURNS[0], {"from": "assistant", "value": "[ferry.book(day=Monday)]"}]),
        ("field 'conversations[1].value'", "calls as [Name(parameter=value)]", "at character 16", "on_bad_record=skip"),
    ),
    "unknown": (
        record(turns=[TURNS[0], {"from": "assistant", "value": "[hotel.book()]"}]),
        ("field 'conversations[1].value'", "tools on offer (Tide Times (v2), ferry.book), found 'hotel.book'"),
    ),
    "empty": (
        record(turns=[TURNS[0], {"from": "assistant", "value": " "}]),
        ("field 'conversations[1].value'", "expected calls or a response, found ' '"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops_the_load(tmp_path: Path, kind: str) -> None:
    bad, parts = BAD[kind]
    with pytest.raises(DataError) as error:
        load(tmp_path, record(), bad).load("train")
    assert all(part in str(error.value) for part in ("data.json[1]: ", *parts)), str(error.value)
