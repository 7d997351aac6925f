"""ToolACE: the notation of its calls, and its records."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from src.data.sources.reading import Record
from src.data.sources.toolace import ToolAceSource, parse_calls
from src.protocol.dialogue import THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE, DataError, Message, ToolCall
from tests.fuzzing import mutated_texts


def read(text: str, names: Collection[str] = ()) -> tuple[list[tuple[str, Any]], str, set[str]]:
    """Calls as pairs, response and shapes."""
    calls, response, shapes = parse_calls(text, names, "x", "value")
    return [(call.name, call.parameters) for call in calls], response, shapes


def refused(text: str, names: Collection[str] = ("f",)) -> str:
    with pytest.raises(DataError) as error:
        parse_calls(text, names, "x", "value")
    return str(error.value).removeprefix("x: field 'value': expected ")


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
        refused(text)
    else:
        assert read(text) == (calls, "", set())


def test_numbers_keep_their_type() -> None:
    ((_, parameters),) = read("[f(a=3, b=3.0, c=.5, d=12345678901234567890)]")[0]

    assert [(type(value), value) for value in parameters.values()] == [
        (int, 3),
        (float, 3.0),
        (float, 0.5),
        (int, 12345678901234567890),
    ]


def test_a_known_name_may_hold_a_parenthesis() -> None:
    text = '[Rates (daily)(base="EUR"), Rates(base="USD")]'

    assert read(text, ["Rates", "Rates (daily)"])[0] == [("Rates (daily)", {"base": "EUR"}), ("Rates", {"base": "USD"})]


def test_text_behind_the_calls_is_returned() -> None:
    assert read("[f(x=1)]  Then I will sum up [1]. ")[1] == "Then I will sum up [1]."


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
        ("[f(x={'a': 1, 'a': 2})]", "key 'a' once in an object at character 17"),
        ('[f(x="\\ud83d")]', "text without a lone surrogate at character 5"),
        (f"[f(x=1{'0' * 400})]", "a finite number at character 5"),
        (f"[f(x={'1' * 5000})]", "a finite number at character 5"),
    ],
)
def test_what_is_not_the_notation_is_refused_at_its_place(text: str, message: str) -> None:
    assert f"calls as [Name(parameter=value)], here {message}" in refused(text)


ONE, TWO = ("f", {"a": 1}), ("f", {"a": 2})
TWO_IN_JSON = '[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "parameters": {"a": 2}}]'


@pytest.mark.parametrize(
    ("text", "calls", "response", "shapes"),
    [
        ("[f(a=1)]\n[f(a=2)]", [ONE, TWO], "", {"in several lists"}),
        ("[f(a=1)], [f(a=2)] Done, [1].", [ONE, TWO], "Done, [1].", {"in several lists"}),
        ("f(a=1)", [ONE], "", {"without brackets"}),
        ("f(a=1), f(a=2)\nf()", [ONE, TWO, ("f", {})], "", {"without brackets"}),
        (TWO_IN_JSON, [ONE, TWO], "", {"as JSON"}),
        ("{'name': 'f', 'arguments': {'a': True}} Wait.", [("f", {"a": True})], "Wait.", {"as JSON"}),
        ('{"arguments": {"a": 1}, "name": "f"}\n[f(a=2)]', [ONE, TWO], "", {"as JSON", "in several lists"}),
        (f"```json\n{TWO_IN_JSON}\n```\nWait.", [ONE, TWO], "Wait.", {"as JSON", "in a fence"}),
        ("```python\nf(a=1)\nf(a=2)\n```", [ONE, TWO], "", {"without brackets", "in a fence"}),
        ("```\n[f(a=1)]```\n\n``` [f(a=2)] ```", [ONE, TWO], "", {"in several lists", "in a fence"}),
        ("`[f(a=1)]`", [ONE], "", {"in a fence"}),
        (f"`{TWO_IN_JSON}`", [ONE, TWO], "", {"as JSON", "in a fence"}),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [ONE], "", {"as JSON", "in tags"}),
        (f"<tool_call>{TWO_IN_JSON}</tool_call> Wait.", [ONE, TWO], "Wait.", {"as JSON", "in tags"}),
        (
            "<tool_call>[f(a=1)]</tool_call><tool_call>[f(a=2)]</tool_call>",
            [ONE, TWO],
            "",
            {"in several lists", "in tags"},
        ),
        (f"[TOOL_CALLS] {TWO_IN_JSON}", [ONE, TWO], "", {"as JSON", "in tags"}),
        ("<|python_tag|>f(a=1)", [ONE], "", {"without brackets", "in tags"}),
        (f'{{"tool_calls": {TWO_IN_JSON}}}', [ONE, TWO], "", {"as JSON"}),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', [ONE], "", {"as JSON"}),
    ],
)
def test_calls_in_other_shapes_are_read(
    text: str, calls: list[tuple[str, Any]], response: str, shapes: set[str]
) -> None:
    assert read(text, ["f"]) == (calls, response, shapes)


@pytest.mark.parametrize(
    "text",
    [
        "[1] See the source.",
        "[1] (a source)",
        "[note] f(x)",
        "[list, of] (words)",
        "[Note (important)] It is sunny.",
        "[Sunny (mostly)](http://x?f=1)",
        "[g(1)] as in mathematics",
        "`[f(a=1)]` is a call.",
        "`f` is a function.",
        "Use [f(a=1)].",
        "Use f(a=1).",
        "f (the function) needs a city.",
        "f(city) needs a city.",
        "g(a=1)",
        "f",
        '{"city": "Oslo", "name": {"first": "f"}}',
        '[{"name": "Oslo", "population": 700000}]',
        '{"name": "Oslo"',
        '[{"city": "Oslo"}, {broken',
        "```python\nprint(f)\n```\nThis prints it.",
        '```json\n{"city": "Oslo"}\n```',
        "```\nUse [f(a=1)]\n```",
        "[] is an empty list.",
        "",
    ],
)
def test_a_response_with_code_or_brackets_stays_one(text: str) -> None:
    assert read(text, ["f"]) == ([], text, set())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[f(a=1)]\n[f(a=2", "',' or ')' after a value at the end of the text"),
        ("f(a=name)", "a value (quoted string, number, true, false, null, list or object) at character 4"),
        ("f(a=1) fetches it.", "nothing behind calls without brackets at character 6, found ' fetches it.'"),
        ("```python\nf(a=1)\nprint(f)\n```", "'```' behind the calls at character 17, found 'print(f)"),
        ("```\n[f(a=1)]", "'```' behind the calls at the end of the text"),
        ('[{"name": "f", "arguments": {"a": 1}', "',' or '}' after a value at the end of the text"),
        ('{"name": "f", "arguments": {"a": NaN}}', "a value (quoted string, number,"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "key 'a' once in an object"),
        ("[f (city)]", "a parameter as name=value at character 4"),
        ("[g (daily)(a=1)]", "a parameter as name=value at character 4"),
        ("[[f(a=1)]]", "a tool's name and '(' at character 1"),
        ('["f(a=1)"]', "a tool's name and '(' at character 1"),
        ("<tool_call>f</tool_call>", "calls behind '<tool_call>' at character 11, found 'f</tool_call>'"),
        ("<tool_call>f(a=1)", "'</tool_call>' behind the calls at the end of the text"),
        ("[TOOL_CALLS]f{}", "calls behind '[TOOL_CALLS]' at character 12"),
        ("<|python_tag|>print(1)", "calls behind '<|python_tag|>' at character 14"),
        ('{"tool_calls": [{"name": "f"', "',' or '}' after a value at the end of the text"),
    ],
)
def test_what_looks_like_calls_and_cannot_be_read_is_refused(text: str, message: str) -> None:
    assert message in refused(text, ["f"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "f", "arguments": 7}]', "x: field 'value[0].arguments': expected an object, found 7."),
        ('[[{"name": "f", "arguments": {}}]]', "x: field 'value[0]': expected an object, found [{"),
        ('{"tool_calls": []}', "x: field 'value.name': expected a string under this key, found ['tool_calls']."),
        (
            '{"content": "Wait.", "tool_calls": [{"name": "f", "arguments": {}}]}',
            "x: field 'value.name': expected a string under this key, found ['content', 'tool_calls'].",
        ),
        ('{"name": "f"}', "x: field 'value.arguments': expected an object under this key, found ['name']."),
        (
            '{"type": "function", "function": {"name": "f", "arguments": "{"}}',
            "x: field 'value.function.arguments': expected valid JSON (Expecting property name enclosed in double",
        ),
    ],
)
def test_json_calls_of_another_form_are_refused_by_field(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_calls(text, ["f"], "x", "value")
    assert str(error.value).startswith(message)


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


WRAPPED = [{"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "required": []}}}]
PING = [
    {"name": "ping", "description": "Pings.", "parameters": {"host": {"examples": [{"name": "a", "description": ""}]}}}
]


@pytest.mark.parametrize(
    ("system", "names"),
    [
        (f"Return [] if no function fits. Tools: {json.dumps(PING)}", ["ping"]),
        (f'Users: [{{"name": "Bob"}}], [1]. Tools: {json.dumps(WRAPPED)}', ["ping"]),
        (f'Users: [{{"name": "Bob", "pets": {json.dumps(TOOLS)}}}]. Tools: {json.dumps(PING)}', ["ping"]),
        (f'Call as [{{"name": <tool>, "arguments": []}}]. Tools: {json.dumps(PING)}', ["ping"]),
        (f'Call as [{{"function": {{"name": "f", "arguments": ""}}}}]. Tools: {json.dumps(PING)}', ["ping"]),
        ('Tools: [{"name": "ping", "input_schema": {}}] and [{"name": "b", "description": ""}]', ["ping"]),
        ("There are no tools: []. Calls would be [name(a=1)].", []),
    ],
)
def test_the_first_list_of_tools_in_the_system_prompt_is_taken(tmp_path: Path, system: str, names: list[str]) -> None:
    turns = [TURNS[0], {"from": "assistant", "value": "Hello."}]
    (example,) = load(tmp_path, record(system, turns)).load("train")

    assert [tool.name for tool in example.tools] == names


@pytest.mark.parametrize(
    "system",
    [
        'Return [] if none fits. Users: [{"name": "Bob"}]',
        'Return [] if none fits. Tools: [{"name": "ping", "parameters": {"required": []',
        'Tools: [{"name": "ping", "description": ""}, {"description": "of nothing"}]',
        'Tools: [[{"name": "ping", "description": ""}]]',
    ],
)
def test_a_system_prompt_with_other_lists_only_is_refused(tmp_path: Path, system: str) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, record(system)).load("train")
    assert str(error.value) == (
        f"{tmp_path}/data.json[0]: field 'system': expected a JSON list of tools in the system prompt, found "
        f"{system!r}. A tool has a name, and a description or parameters. Correct it, or leave bad records out with "
        "data.on_bad_record=skip."
    )


def test_an_empty_list_is_a_refusal_and_unusual_shapes_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["[]", "```json\n[]\n```", "`[]`", "ferry.book()", "[ferry.book()]\n[ferry.book()]", "[ferry.book()]"]
    dialogues = [record(turns=[TURNS[0], {"from": "assistant", "value": text}]) for text in texts]
    source = load(tmp_path, *dialogues)
    with caplog.at_level(logging.INFO, "src"):
        examples = source.load("train")
        source.load("train")

    text = "None of the provided functions can be used to answer this request."
    assert [example.target for example in examples[:3]] == [Message("assistant", text, THOUGHT_OF_RESPONSE)] * 3
    assert [example.tags for example in examples] == [
        *[("response", "refusal")] * 3,
        ("single_call",),
        ("parallel_calls",),
        ("single_call",),
    ]
    assert caplog.messages == [
        "toolace: messages with calls in other shapes than one list: 3 as an empty list, 1 in several lists, "
        "1 without brackets."
    ]


def test_mutated_messages_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    source = load(tmp_path)
    bases = [
        TURNS[1]["value"],
        TURNS[3]["value"],
        "ferry.book()\nferry.book()",
        "```json\n" + json.dumps([{"name": "ferry.book", "arguments": {}}]) + "\n```",
    ]
    read_so = dict.fromkeys(("calls", "response", "refused"), 0)
    for text in mutated_texts(3000, 20260101, bases):
        turns = [TURNS[0], {"from": "assistant", "value": text}]
        try:
            (example,) = source.convert(Record(record(turns=turns), "x", "0"))
            read_so["calls" if example.target.calls else "response"] += 1
        except DataError:
            read_so["refused"] += 1
    assert min(read_so.values()) > 200  # the texts are not all junk


def test_mutated_systems_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    source = load(tmp_path)
    for system in mutated_texts(300, 20260101, [SYSTEM]):
        try:
            source.convert(Record(record(system=system), "x", "0"))
        except DataError as error:
            assert str(error).startswith("x: field '")


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
        (
            "field 'conversations[1].value'",
            "calls as [Name(parameter=value)]",
            "at character 16",
            "data.on_bad_record=skip",
        ),
    ),
    "unknown": (
        record(turns=[TURNS[0], {"from": "assistant", "value": "[hotel.book()]"}]),
        ("field 'conversations[1].value'", "tools on offer (Tide Times (v2), ferry.book), found 'hotel.book'"),
    ),
    "twice": (
        record(system=SYSTEM.replace('"name": "ferry.book"', '"name": "ferry.book", "name": "b"')),
        ("field 'system[1].name'", "this key once in its object, found ['ferry.book', 'b']"),
    ),
    "overflow": (
        record(system=SYSTEM.replace('"type": "int"', '"type": "int", "default": 1e999')),
        ("field 'system[0].parameters.properties.days.default'", "a finite number, found inf"),
    ),
    "no-user": (
        record(turns=[{"from": "user", "value": " "}, *TURNS[1:]]),
        ("field 'conversations[0].value'", "a user's request, found ' '"),
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
