"""xLAM records: JSON inside JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.data.sources.xlam import XlamSource
from src.protocol.dialogue import THOUGHT_OF_CALLS, DataError, Message, ToolCall

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


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": (record(answers=...), ("field 'answers'", "a string under this key", "['id', 'query', 'tools']")),
    "type": (record(query=3), ("field 'query'", "expected a string, found 3")),
    "json": (record(tools='[{"name"'), ("field 'tools'", "valid JSON", "line 1 column 9")),
    "no-call": (record(answers="[]"), ("field 'answers'", "a list of at least one call, found []")),
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
    assert source.skipped == len(bad) == 7
    assert "xlam: 7 bad records skipped, 1 examples read." in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source 'xlam': no example in .*xlam\.json"):
        load(tmp_path, BAD["json"][0], on_bad_record="skip").load("train")
    with pytest.raises(ValueError, match="on_bad_record: expected 'error' or 'skip', found 'drop'"):
        load(tmp_path, on_bad_record="drop")
