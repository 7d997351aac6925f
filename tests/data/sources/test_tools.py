import json
from typing import Any

import pytest

from src.data.sources.tools import check_on_offer, tool_specs
from src.data.templates.published import published_system
from src.protocol.dialogue import DataError, ToolCall, ToolSpec


def test_a_tool_keeps_its_json_and_the_published_prompt_puts_the_three_keys_first() -> None:
    schema = {"type": "dict", "properties": {"unit": {"enum": ["C", "F"], "type": "str"}}, "required": ["unit"]}
    bare = {"city": {"default": "Oslo", "description": "The city."}}
    tools = [
        {"name": "a", "parameters": schema, "results": 3},
        {"name": "b", "description": "d", "parameters": bare},
        {"name": "c"},
    ]
    specs = tool_specs(tools, "x", "tools")

    assert [spec.json for spec in specs] == tools
    assert [spec.required for spec in specs] == [("unit",), (), ()]
    lines = [line for line in published_system(specs).splitlines() if line.startswith("Parameters: ")]
    assert lines == [
        'Parameters: {"unit": {"description": "", "type": "str", "default": "", "enum": ["C", "F"]}}',
        'Parameters: {"city": {"description": "The city.", "type": "string", "default": "Oslo"}}',
        "Parameters: {}",
    ]


def test_openai_s_wrapping_of_a_tool_is_read_through() -> None:
    function = {"name": "a", "description": "d", "parameters": {"type": "object", "properties": {"n": {}}}}
    (spec,) = tool_specs([{"type": "function", "function": function}], "x", "tools")

    assert (spec.name, spec.description, list(spec.parameters)) == ("a", "d", ["n"])
    with pytest.raises(DataError, match=r"field 'tools\[0\]\.function\.name': .* The key is missing"):
        tool_specs([{"type": "function", "function": {}}], "x", "tools")


@pytest.mark.parametrize("key", ["parameters", "input_schema"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_parameters_in_json_text_are_parsed_strictly(key: str, wrapped: bool) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "int"}}, "required": ["n"]}

    def tools(text: str) -> list[dict[str, Any]]:
        function = {"name": "a", key: text}
        return [{"type": "function", "function": function} if wrapped else function]

    assert tool_specs(tools(json.dumps(schema)), "x", "tools") == (ToolSpec(tools(schema)[0], filled=True),)  # type: ignore[arg-type]
    path = f"tools[0]{'.function' * wrapped}.{key}"
    with pytest.raises(DataError) as error:
        tool_specs(tools('{"n": {"a": 1, "a": 2}}'), "x", "tools")
    assert str(error.value) == f"x: field '{path}.n.a': expected this key once in its object, found [1, 2]."
    with pytest.raises(DataError) as error:
        tool_specs(tools("none"), "x", "tools")
    assert str(error.value) == (
        f"x: field '{path}': expected valid JSON (Expecting value at line 1 column 1), found 'none'."
    )


SCHEMA = {"type": "object", "properties": {"n": {}}, "required": ["n"]}


@pytest.mark.parametrize(
    "other",
    [{"description": "two"}, {"parameters": {**SCHEMA, "required": []}}, {"parameters": {**SCHEMA, "properties": {}}}],
)
def test_a_repeated_tool_is_dropped_and_an_ambiguous_one_refused(other: dict[str, Any]) -> None:
    tool = {"name": "a", "description": "one", "parameters": SCHEMA}

    assert len(tool_specs([tool, dict(tool), {"function": tool}], "x", "tools")) == 1
    with pytest.raises(DataError) as error:
        tool_specs([tool, {**tool, **other}], "x", "tools")
    assert str(error.value) == "x: field 'tools[1].name': expected a name that no other tool has, found 'a'."


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"type": "object"}, []),
        ({"type": "object", "properties": None}, []),
        ({"properties": {"city": {"type": "string"}}}, ["city"]),
        ({"type": "object", "properties": {"city": True}, "required": ["city"]}, ["city"]),
        (None, []),
        ({"properties": {"description": "of the house", "type": "string"}}, ["properties"]),  # a parameter of this name
    ],
)
def test_every_legal_schema_of_a_tool_is_read(parameters: object, names: list[str]) -> None:
    (spec,) = tool_specs([{"name": "a", "parameters": parameters}], "x", "tools")  # type: ignore[dict-item, list-item]
    assert list(spec.parameters) == names


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hours": {"type": "array", "items": {"type": "number"}},
            "at": {"type": "object", "properties": {"lat": {"type": ["number", "null"]}}},
            "unit": {"type": "Celsius"},
        },
        "required": ["city"],
    },
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Oslo"},
        {"city": "Oslo", "days": 2.0, "hours": [1, 2.5], "at": {"lat": None, "lon": 3}, "unit": 7},
        {"city": "Oslo", "days": None, "hours": None},  # not required
    ],
)
def test_calls_that_the_schema_allows(arguments: dict[str, Any]) -> None:
    check_on_offer([ToolCall("weather", arguments)], [ToolSpec(WEATHER)], "x.json[0]", "answers")


@pytest.mark.parametrize(
    ("name", "arguments", "expected", "found"),
    [
        ("rain", {}, "calls of the tools on offer (weather)", "'rain'"),
        ("weather", {"city": "a", "day": 2}, "parameters that 'weather' has (city, days, hours, at, unit)", "'day'"),
        ("weather", {"days": 2}, "the required parameter 'city' of 'weather'", "{'days': 2}"),
        ("weather", {"city": None}, "a string in 'city' of 'weather', as its schema says", "None"),
        ("weather", {"city": 7}, "a string in 'city' of 'weather', as its schema says", "7"),
        ("weather", {"city": "a", "days": True}, "an integer in 'days' of 'weather', as its schema says", "True"),
        ("weather", {"city": "a", "days": 2.5}, "an integer in 'days' of 'weather', as its schema says", "2.5"),
        ("weather", {"city": "a", "hours": [1, "2"]}, "a number in 'hours' of 'weather', as its schema says", "'2'"),
        (
            "weather",
            {"city": "a", "at": {"lat": "n"}},
            "a number or null in 'at' of 'weather', as its schema says",
            "'n'",
        ),
    ],
)
def test_a_call_that_is_not_on_offer_is_named(name: str, arguments: dict[str, Any], expected: str, found: str) -> None:
    with pytest.raises(DataError) as error:
        check_on_offer([ToolCall(name, arguments)], [ToolSpec(WEATHER)], "x.json[0]", "answers")
    assert str(error.value) == f"x.json[0]: field 'answers': expected {expected}, found {found}."


@pytest.mark.parametrize(
    ("written", "good", "bad"),
    [
        ("Union[List[str], str]", ["a", ["a"]], [7, None]),
        ("list[str] | str", ["a", ["a"]], [7]),
        ("List[int] or int", [3, [3]], ["3"]),
        ("array[string] or string", ["a", ["a"]], [7]),
        ("List[int] | None", [None, [3]], [3]),
        ("Dict[str, List[int]], optional", [None, {"a": [3]}], [[3]]),
        ("Optional[Union[int, List[Optional[str]]]]", [None, 3, ["a"]], ["a"]),
        ("string[]", [["a"]], ["a"]),
        ("float[][]", [[[1.0]]], [1.0]),
        ("object[] | null", [[{}], None], [{}]),
        ("integer[0..9]", [3, "any"], []),  # not known
        ("Union[int, Celsius]", [3, "any"], []),
        ("Union[int", [3, "any"], []),
    ],
)
def test_types_in_text_are_split_outside_of_brackets(written: str, good: list[Any], bad: list[Any]) -> None:
    tool = ToolSpec(
        {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": written}}, "required": ["a"]}}
    )
    for value in good:
        check_on_offer([ToolCall("f", {"a": value})], [tool], "x", "answers")
    for value in bad:
        with pytest.raises(
            DataError, match=r"^x: field 'answers': expected .* in 'a' of 'f', as its schema says, found"
        ):
            check_on_offer([ToolCall("f", {"a": value})], [tool], "x", "answers")


def test_a_schema_that_is_open_takes_other_parameters() -> None:
    tool = json.loads(json.dumps(WEATHER))
    tool["parameters"]["additionalProperties"] = True
    check_on_offer([ToolCall("weather", {"city": "Oslo", "day": 2})], [ToolSpec(tool)], "x", "answers")
