"""xLAM records: JSON inside JSON."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from src.data.sources.hammer import HammerSource
from src.data.sources.xlam import XlamSource
from src.protocol.dialogue import THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE, DataError, Message, ToolCall

TOOLS = [
    {
        "name": "tide_times",
        "description": "High and low tides of a harbour.",
        "parameters": {
            "harbour": {"description": "Harbour name.", "type": "str"},
            "days": {"description": "Days ahead.", "type": "int, optional", "default": 1},
        },
    },
    {"name": "v1/moon", "description": "Phase of the moon.", "parameters": {}},
]
ANSWERS = [
    {"name": "tide_times", "arguments": {"harbour": "Hull", "days": 2}},
    {"name": "tide_times", "arguments": {"harbour": "Whitby"}},
]


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "id": 0,
        "query": "Tides for Hull over two days, and for Whitby?",
        "tools": json.dumps(TOOLS),
        "answers": json.dumps(ANSWERS),
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def load(folder: Path, *records: dict[str, Any], **options: Any) -> XlamSource:
    path = folder / "xlam.json"
    path.write_text(json.dumps(records))
    return XlamSource(path=str(path), **options)


def test_a_record_becomes_one_example(tmp_path: Path) -> None:
    single = record(query="Moon?", answers=json.dumps([{"name": "v1/moon", "arguments": {}}]))
    first, second = load(tmp_path, record(), single).load("train")

    assert first.history == (Message("user", "Tides for Hull over two days, and for Whitby?"),)
    assert first.target.calls == (
        ToolCall("tide_times", {"harbour": "Hull", "days": 2}),
        ToolCall("tide_times", {"harbour": "Whitby"}),
    )
    assert first.target.thought == THOUGHT_OF_CALLS
    assert [tool.name for tool in first.tools] == ["tide_times", "v1/moon"]
    assert first.tools[0].parameters["days"] == {"description": "Days ahead.", "type": "int, optional", "default": 1}
    assert (first.tags, second.tags) == (("parallel_calls",), ("single_call",))


def test_tools_and_answers_may_be_parsed_already(tmp_path: Path) -> None:
    assert load(tmp_path, record(tools=TOOLS, answers=ANSWERS)).load("train") == load(tmp_path, record()).load("train")


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([], "None of the provided functions can be used to answer this request."),
        ("[]", "None of the provided functions can be used to answer this request."),
        ("```json\n[ ]\n```", "None of the provided functions can be used to answer this request."),
        (" Sorry, none of [these] tools can help.\n", "Sorry, none of [these] tools can help."),
        ("我无法回答。", "我无法回答。"),
    ],
)
def test_no_answers_are_a_refusal(tmp_path: Path, answers: Any, text: str) -> None:
    source = load(tmp_path, record(answers=answers))
    (plain,) = source.load("train")
    (masked,) = HammerSource(source).load("train")

    assert plain.target == masked.target == Message("assistant", text, THOUGHT_OF_RESPONSE)
    assert (plain.tags, masked.tags) == (("response", "refusal"), ("response", "refusal", "masked"))
    assert [tool.name for tool in plain.tools] == ["tide_times", "v1/moon"] != [tool.name for tool in masked.tools]


def test_answers_in_a_fence_are_calls(tmp_path: Path) -> None:
    fenced = load(tmp_path, record(answers=f"```json\n{json.dumps(ANSWERS)}\n```")).load("train")

    assert fenced == load(tmp_path, record()).load("train")


CALL = '{"name": "v1/moon", "arguments": {}}'


@pytest.mark.parametrize(
    ("answers", "response"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", ""),
        (f"`[{CALL}]`", ""),
        ("[v1/moon()] I look.", "I look."),
        ("v1/moon()", ""),
        ("```python\nv1/moon()\n```", ""),
    ],
)
def test_calls_in_other_notations_are_calls(tmp_path: Path, answers: str, response: str) -> None:
    (example,) = load(tmp_path, record(answers=answers)).load("train")

    assert example.target == Message("assistant", response, THOUGHT_OF_CALLS, (ToolCall("v1/moon", {}),))


@pytest.mark.parametrize("answers", ["None", "nan", "NaN", "Infinity", "N/A", "-", "1e999", "- -", "…"])
def test_a_refusal_in_text_has_words(tmp_path: Path, answers: str) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, record(answers=answers)).load("train")
    assert str(error.value) == (
        f"{tmp_path}/xlam.json[0]: field 'answers': expected a list of calls, or a refusal in words, found {answers!r}."
        " Correct it, or leave bad records out with data.on_bad_record=skip."
    )


def test_calls_in_nested_columns_have_the_parameters_that_were_said(tmp_path: Path) -> None:
    answers = [*ANSWERS, {"name": "v1/moon", "arguments": {}}]
    parquet.write_table(pa.Table.from_pylist([record(answers=answers)]), tmp_path / "x.parquet")
    (example,) = XlamSource(path=str(tmp_path)).load("train")

    assert [call.parameters for call in example.target.calls] == [
        {"harbour": "Hull", "days": 2},
        {"harbour": "Whitby"},
        {},
    ]


def test_a_required_null_of_a_nested_column_is_a_missing_parameter(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"days": {"type": ["integer", "null"]}}, "required": ["days"]}
    tools = json.dumps([{"name": "f", "parameters": schema}])
    rows = [record(tools=tools, answers=[{"name": "f", "arguments": {"days": days}}]) for days in (1, None)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet\[1\]: field 'answers': .*parameter 'days' of 'f', found \{\}"):
        XlamSource(path=str(tmp_path)).load("train")

    text = record(tools=tools, answers=json.dumps(rows[1]["answers"]))
    assert load(tmp_path, text).load("train")[0].target.calls == (ToolCall("f", {"days": None}),)


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": (record(answers=...), ("field 'answers'", "a string under this key", "['id', 'query', 'tools']")),
    "type": (record(query=3), ("field 'query'", "expected a string, found 3")),
    "json": (record(tools='[{"name"'), ("field 'tools'", "valid JSON", "line 1 column 9")),
    "number": (record(answers="7"), ("field 'answers'", "a list of calls, found 7.")),
    "blank": (record(answers=" "), ("field 'answers'", "valid JSON")),
    "prose": (record(answers=f"Call {ANSWERS}.".replace("'", '"')), ("field 'answers'", "valid JSON")),
    "prefixed": (
        record(answers=f"Calls: [{CALL}]".replace("arguments", "parameters")),
        ("field 'answers'", "valid JSON"),
    ),
    "unknown-call": (record(answers='sun(city="Oslo", day=1)'), ("field 'answers'", "valid JSON")),
    "tagged": (
        record(answers="<tool_call> v1/moon"),
        ("field 'answers'", "calls behind '<tool_call>' at character 12"),
    ),
    "null": (record(answers="null"), ("field 'answers'", "a list of calls, found None.")),
    "cut": (record(answers='```json\n[{"name": "v1/moon"'), ("field 'answers'", "valid JSON")),
    "twice": (
        record(answers='[{"name": "v1/moon", "arguments": {"x": [{"a": 1, "a": 2}]}}]'),
        ("field 'answers[0].arguments.x[0].a'", "this key once in its object, found [1, 2]"),
    ),
    "overflow": (
        record(tools='[{"name": "f", "parameters": {"x": {"default": 1e999}}}]'),
        (
            "field 'tools[0].parameters.x.default'",
            "a finite number, found inf",
        ),
    ),
    "surrogate": (
        record(answers='[{"name": "v1/moon", "arguments": {"x": "\\ud83d"}}]'),
        ("field 'answers[0].arguments.x'", "text without a lone surrogate, found '\\ud83d'"),
    ),
    "no-user": (record(query=" \n"), ("field 'query'", "a user's request, found ' \\n'")),
    "no-query": (record(query=...), ("field 'query'", "a string under this key")),
    "call": (record(answers='[{"name": "v1/moon"}]'), ("field 'answers[0].arguments'", "an object under this key")),
    "unknown": (
        record(answers='[{"name": "sun", "arguments": {}}]'),
        ("field 'answers'", "tools on offer (tide_times, v1/moon), found 'sun'"),
    ),
    "parameter": (
        record(tools='[{"name": "tide_times", "parameters": {"harbour": "str"}}]'),
        ("field 'tools[0].parameters.harbour'", "an object that describes the parameter, found 'str'"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops_the_load(tmp_path: Path, kind: str) -> None:
    bad, parts = BAD[kind]
    with pytest.raises(DataError) as error:
        load(tmp_path, record(), bad).load("train")
    assert all(part in str(error.value) for part in ("xlam.json[1]: ", *parts)), str(error.value)


def test_bad_records_can_be_skipped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [value for value, _ in BAD.values()]
    source = load(tmp_path, *bad, record(), on_bad_record="skip")

    assert len(source.load("train")) == 1
    assert source.skipped == len(bad) == 19
    assert "xlam: 19 bad records skipped, 1 examples read." in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source 'xlam': no example in .*xlam\.json"):
        load(tmp_path, BAD["json"][0], on_bad_record="skip").load("train")
    with pytest.raises(ValueError, match="on_bad_record: expected 'error' or 'skip', found 'drop'"):
        load(tmp_path, on_bad_record="drop")
