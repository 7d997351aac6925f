"""ShareGPT's dialogues, in the dialects of LLaMA-Factory and ms-swift."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.data.sources.checks import faults_of
from src.data.sources.sharegpt import ShareGptSource
from src.protocol.dialogue import THOUGHT_OF_RESPONSE, Message, ToolCall, TurnExample
from tests.conftest import needs_shared_data

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "sky", "description": "The sky.", "parameters": SCHEMA}]
OSLO, ROME = ({"name": "sky", "arguments": {"city": city}} for city in ("Oslo", "Rome"))


def turn(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value if isinstance(value, str) else json.dumps(value)}


ASKED, SEEN, ANSWER = turn("human", "Sun in Oslo?"), turn("observation", {"sun": True}), turn("gpt", "Yes.")
DIALOGUE = [ASKED, turn("function_call", OSLO), SEEN, ANSWER]


def source(folder: Path, *rows: dict[str, Any], **options: Any) -> ShareGptSource:
    path = folder / "x.json"
    path.write_text(json.dumps(rows))
    return ShareGptSource(path=str(path), **options)


def load(folder: Path, conversations: Any, **columns: Any) -> list[TurnExample]:
    row = {"conversations": conversations, "tools": json.dumps(TOOLS), **columns}
    return source(folder, row).load("train")


def test_a_dialogue_becomes_an_example_a_step(tmp_path: Path) -> None:
    first, second = load(tmp_path, DIALOGUE, system="Be kind.", lang="en")

    assert first.history == (Message("system", "Be kind."), Message("user", "Sun in Oslo?"))
    assert first.target.calls == (ToolCall("sky", {"city": "Oslo"}),)
    assert second.history[3:] == (Message("observation", '{"sun": true}'),)
    assert second.target == Message("assistant", "Yes.", THOUGHT_OF_RESPONSE)
    assert [tool.name for tool in first.tools] == ["sky"]
    assert first.columns == second.columns == {"lang": "en"}


@pytest.mark.parametrize(
    "names",
    [
        ("human", "function_call", "observation", "gpt"),
        ("user", "tool_call", "tool_response", "assistant"),
        ("user", "tool_call", "tool", "assistant"),
    ],
)
def test_every_dialect_loads_the_same(tmp_path: Path, names: tuple[str, ...]) -> None:
    plain = load(tmp_path, DIALOGUE)
    renamed = [{**one, "from": name} for one, name in zip(DIALOGUE, names, strict=True)]
    swift = [{"role": one["from"], "content": one["value"]} for one in renamed]

    for conversations in (renamed, swift, json.dumps(renamed)):
        assert load(tmp_path, conversations, tools=TOOLS, system=None) == plain


@pytest.mark.parametrize(
    "calls",
    [
        [turn("function_call", OSLO), turn("function_call", ROME)],
        [turn("tool_call", [OSLO, ROME])],
        [{"from": "tool_call", "value": [OSLO, ROME]}],
    ],
)
def test_calls_in_a_row_are_one_step(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    first, second = load(tmp_path, [ASKED, *calls, SEEN, SEEN, ANSWER])

    assert [one.parameters["city"] for one in first.target.calls] == ["Oslo", "Rome"]
    assert first.tags == ("parallel_calls",)
    assert [one.role for one in second.history] == ["user", "assistant", "observation", "observation"]


def test_a_thought_before_a_call_is_one(tmp_path: Path) -> None:
    thought = turn("function_call", f"<think>\nI look.\n</think>\n\n{json.dumps(OSLO)}")
    for calls in ([thought], [turn("gpt", "<think>I look.</think> One moment."), turn("function_call", OSLO)]):
        target = load(tmp_path, [ASKED, *calls, SEEN, ANSWER])[0].target
        assert (target.thought, len(target.calls)) == ("I look.", 1)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"conversations": ...},
        "field 'conversations': expected a list under this key, found ['tools']. The key is missing.",
    ),
    "role": (
        {"conversations": [turn("bing", "Hi.")]},
        "field 'conversations[0].from': expected one of system, developer, user, human, assistant, gpt, tool_call, "
        "function_call, tool, function, tool_response, observation, found 'bing'. Rename the role.",
    ),
    "json": (
        {"conversations": [ASKED, turn("function_call", "sky(city='Oslo')")]},
        "field 'conversations[1].value': expected valid JSON (Expecting value at line 1 column 1), found "
        "\"sky(city='Oslo')\".",
    ),
    "arguments": (
        {"conversations": [ASKED, turn("function_call", [OSLO, {"name": "sky"}])]},
        "field 'conversations[1].value[1].arguments': expected an object under this key, found ['name']. The key is "
        "missing.",
    ),
    "offer": (
        {"conversations": DIALOGUE, "tools": []},
        "field 'conversations[1].value': expected calls of the tools on offer (none), found 'sky'.",
    ),
    "result": (
        {"conversations": [ASKED, SEEN, ANSWER]},
        "field 'conversations[1]': expected a call before its result, found '{\"sun\": true}'. Add the call, or drop "
        "this.",
    ),
    "system": ({"conversations": DIALOGUE, "system": 3}, "field 'system': expected a string, found 3."),
    "toolace": (
        {"conversations": DIALOGUE, "tools": ..., "system": json.dumps(TOOLS)},
        "field 'tools': expected the tools in a column, not in the text of `system`, found ['conversations', 'system']."
        " This record has the columns conversations, system: use data=toolace.",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named(tmp_path: Path, kind: str) -> None:
    changes, said = FAULTS[kind]
    row = {key: value for key, value in {"tools": TOOLS, **changes}.items() if value is not ...}
    with pytest.raises(ValueError) as error:
        source(tmp_path, row).load("train")
    end = " Correct it, or leave bad records out with data.on_bad_record=skip."
    assert str(error.value) == f"{tmp_path}/x.json[0]: {said}{end}"


@needs_shared_data
def test_real_dialogues_load(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of the 300 has a call that its own schema forbids."""
    path = shared_data / "llama_factory/glaive_toolcall_en_demo.json"
    found = ShareGptSource(path=str(path), on_bad_record="skip")
    examples = found.load("train")

    assert (len(examples), found.skipped) == (954, 1)
    assert "[259]: field 'conversations[3].value': expected a number in 'calories_per_item'" in caplog.text
    assert sum(bool(one.target.calls) for one in examples) == 210
    assert set(faults_of(examples, None)) == {None}
