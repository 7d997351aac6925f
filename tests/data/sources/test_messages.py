"""Dialogues in OpenAI's shape: every legal way to write one loads the same, and each fault is one message."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from src.data.sources.checks import faults_of
from src.data.sources.messages import MessagesSource
from src.data.sources.reading import Record
from src.protocol.dialogue import THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE, DataError, Message, ToolCall, TurnExample
from tests.conftest import needs_shared_data

SCHEMA = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
FIND = {"name": "find_order", "description": "Finds an order.", "parameters": SCHEMA}
CANCEL = {"name": "cancel", "description": "Cancels an order.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FIND}, {"type": "function", "function": CANCEL}]
USER = {"role": "user", "content": "Where is order 12?"}


def call(number: int = 12, id: str = "call_1", name: str = "find_order") -> dict[str, Any]:
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps({"number": number})},
    }


def calls(*made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made), **more}


RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"status": "sent"}'}
ANSWER = {"role": "assistant", "content": "It was sent."}
DIALOGUE = [USER, calls(call()), RESULT, ANSWER]


def source(folder: Path, *rows: dict[str, Any], **options: Any) -> MessagesSource:
    path = folder / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return MessagesSource(path=str(path), **options)


def load(folder: Path, messages: Any, tools: Any = TOOLS, train_on: Any = "all", **columns: Any) -> list[TurnExample]:
    return source(folder, {"messages": messages, "tools": tools, **columns}, train_on=train_on).load("train")


def refused(folder: Path, *args: Any, **options: Any) -> str:
    """What is said of a row's fault, without the place and what is said of every fault."""
    with pytest.raises(ValueError) as error:
        load(folder, *args, **options)
    said = str(error.value)
    head, tail = f"{folder}/x.jsonl:1: ", " Correct it, or leave bad records out with data.on_bad_record=skip."
    assert said.startswith(head) and said.endswith(tail)
    return said.removeprefix(head).removesuffix(tail)


def test_a_dialogue_becomes_an_example_a_step(tmp_path: Path) -> None:
    first, second = load(tmp_path, DIALOGUE)

    (found,) = first.target.calls
    assert first.history == (Message("user", "Where is order 12?"),)
    assert (found, found.id) == (ToolCall("find_order", {"number": 12}), "call_1")
    assert [tool.name for tool in first.tools] == ["find_order", "cancel"]
    assert second.history[1:] == (
        Message("assistant", calls=first.target.calls),
        Message("observation", '{"status": "sent"}', name="find_order", call_id="call_1"),
    )
    assert second.target == Message("assistant", "It was sent.", THOUGHT_OF_RESPONSE)
    assert (first.target.thought, first.tags, second.tags) == (THOUGHT_OF_CALLS, ("single_call",), ("response",))


BARE = {"name": "find_order", "arguments": {"number": 12}, "id": "call_1"}
PARSED = {**call(), "function": {"name": "find_order", "arguments": {"number": 12}}}
PARTS = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "order 12?"}]


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        (json.dumps(DIALOGUE), json.dumps(TOOLS)),
        (DIALOGUE, [FIND, CANCEL]),
        ([USER, calls(PARSED), *DIALOGUE[2:]], TOOLS),
        ([USER, calls(BARE), *DIALOGUE[2:]], TOOLS),
        ([USER, {"role": "assistant", "tool_calls": json.dumps([call()])}, *DIALOGUE[2:]], TOOLS),
        ([{**USER, "content": PARTS}, *DIALOGUE[1:]], TOOLS),
        (
            [
                USER,
                {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(BARE)}]},
                {**RESULT, "content": [{"type": "text", "value": RESULT["content"]}]},
                {"role": "assistant", "content": [{"type": "text", "value": "It was sent."}]},
            ],
            TOOLS,
        ),
        ([USER, calls(call()), {**RESULT, "content": {"status": "sent"}, "name": "find_order"}, ANSWER], TOOLS),
        ([*DIALOGUE[:3], {"role": "assistant", "content": None, "refusal": "It was sent."}], TOOLS),
    ],
)  # fmt: skip
def test_every_legal_way_to_write_a_dialogue_loads_the_same(tmp_path: Path, messages: Any, tools: Any) -> None:
    plain, found = load(tmp_path, DIALOGUE), load(tmp_path, messages, tools)

    assert [(one.history, one.target) for one in found] == [(one.history, one.target) for one in plain]
    assert [tool.name for tool in found[0].tools] == ["find_order", "cancel"]


def test_nested_columns_of_parquet_load_the_same(tmp_path: Path) -> None:
    nested = [USER, calls(PARSED), RESULT, ANSWER]
    parquet.write_table(pa.Table.from_pylist([{"messages": nested, "tools": TOOLS}]), tmp_path / "x.parquet")

    assert MessagesSource(path=str(tmp_path)).load("train")[1].history == load(tmp_path, DIALOGUE)[1].history


@pytest.mark.parametrize("tools", [None, [], "[]", "", "null"])
def test_no_tools_are_no_tools(tmp_path: Path, tools: Any) -> None:
    assert load(tmp_path, [USER, ANSWER], tools)[0].tools == ()
    assert source(tmp_path, {"messages": [USER, ANSWER]}).load("train")[0].tools == ()


def test_functions_and_function_calls_of_old(tmp_path: Path) -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "cancel", "arguments": '{"number": 3}'}}
    result = {"role": "function", "name": "cancel", "content": "done"}
    first, second = source(tmp_path, {"messages": [USER, old, result, ANSWER], "functions": [CANCEL]}).load("train")

    assert first.target.calls == (ToolCall("cancel", {"number": 3}),)
    assert second.history[-1] == Message("observation", "done", name="cancel")
    assert first.columns == {}


@pytest.mark.parametrize(
    ("message", "thought", "text"),
    [
        ({"content": "Yes.", "reasoning_content": " Easy. "}, "Easy.", "Yes."),
        ({"content": "Yes.", "reasoning": "Easy.", "thinking": None}, "Easy.", "Yes."),
        ({"content": "Yes.", "reasoning": "Easy.", "reasoning_content": "Easy."}, "Easy.", "Yes."),
        ({"content": "<think>\nEasy.\n</think>\n\nYes."}, "Easy.", "Yes."),
        ({"content": "<think>\n\n</think>\n\nYes."}, THOUGHT_OF_RESPONSE, "Yes."),
        ({"content": "I <think>hm</think> so."}, THOUGHT_OF_RESPONSE, "I <think>hm</think> so."),
        ({"content": [{"type": "reasoning", "value": "Easy."}, {"type": "text", "value": "Yes."}]}, "Easy.", "Yes."),
        ({"content": [{"type": "thinking", "thinking": "Easy."}, {"type": "text", "text": "Yes."}]}, "Easy.", "Yes."),
    ],
)
def test_thoughts_are_told_from_responses(tmp_path: Path, message: dict[str, Any], thought: str, text: str) -> None:
    (example,) = load(tmp_path, [USER, {"role": "assistant", **message}])
    assert example.target == Message("assistant", text, thought)


def test_system_messages_stay_where_they_are(tmp_path: Path) -> None:
    developer = {"role": "developer", "content": "Be quick."}
    (example,) = load(tmp_path, [{"role": "system", "content": "Be kind."}, USER, developer, ANSWER])

    assert [(one.role, one.text) for one in example.history] == [
        ("system", "Be kind."),
        ("user", "Where is order 12?"),
        ("system", "Be quick."),
    ]


def test_a_greeting_is_history_only(tmp_path: Path) -> None:
    (example,) = load(tmp_path, [{"role": "assistant", "content": "Hello!"}, USER, ANSWER])

    assert [one.role for one in example.history] == ["assistant", "user"]
    assert faults_of([example], None) == [None]


def test_several_results_stand_in_the_order_of_their_calls(tmp_path: Path) -> None:
    both = calls(call(1, "a"), call(2, "b", "cancel"))
    second, first = ({"role": "tool", "tool_call_id": id, "content": [{"type": "order", "n": id}]} for id in "ba")
    example = load(tmp_path, [USER, both, second, first, ANSWER])[1]

    assert [(one.name, one.call_id, one.text) for one in example.history[2:]] == [
        ("find_order", "a", '[{"type": "order", "n": "a"}]'),
        ("cancel", "b", '[{"type": "order", "n": "b"}]'),
    ]


def test_ids_may_be_numbers_and_arguments_empty(tmp_path: Path) -> None:
    asked = {"id": 7, "type": "function", "function": {"name": "list_orders", "arguments": ""}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "list_orders"}}]
    first, second = load(tmp_path, [USER, calls(asked), {**RESULT, "tool_call_id": 7}, ANSWER], tools)

    assert first.target.calls == (ToolCall("list_orders", {}),)
    assert (second.history[2].name, second.history[2].call_id) == ("list_orders", "7")


def test_other_columns_are_kept(tmp_path: Path) -> None:
    examples = load(tmp_path, DIALOGUE, tool_choice="auto", parallel_tool_calls=None, answer={"id": 7}, note=None)
    assert [one.columns for one in examples] == [{"answer": {"id": 7}, "note": None}] * 2


@pytest.mark.parametrize(
    ("train_on", "marks", "expected"),
    [
        ("all", ({}, {}), ["call", "text"]),
        ("last", ({}, {}), ["text"]),
        ("marked", ({"train": True}, {}), ["call"]),
        ("marked", ({"train": False}, {"train": 1}), ["text"]),
        ("marked", ({"loss": False}, {"loss": True}), ["text"]),
        ("marked", ({"weight": 0}, {"weight": 1}), ["text"]),
        ("marked", ({"weight": 0}, {}), ["text"]),  # a message without a weight weighs 1, as at OpenAI's
    ],
)
def test_targets_are_chosen(tmp_path: Path, train_on: str, marks: tuple[Any, Any], expected: list[str]) -> None:
    messages = [USER, {**DIALOGUE[1], **marks[0]}, RESULT, {**ANSWER, **marks[1]}]
    examples = load(tmp_path, messages, train_on=train_on)

    assert ["call" if one.target.calls else "text" for one in examples] == expected
    assert len(examples[-1].history) == (3 if expected[-1] == "text" else 1)


def test_a_call_and_the_response_behind_it_are_one_target(tmp_path: Path) -> None:
    for train_on in ("all", "last"):
        (example,) = load(tmp_path, [USER, calls(call()), ANSWER], train_on=train_on, tool_choice="required")
        assert (len(example.target.calls), example.target.text) == (1, "It was sent.")


def test_a_choice_of_tools_is_held_to(tmp_path: Path) -> None:
    named = {"type": "function", "function": {"name": "find_order"}}
    for choice in ("required", named, json.dumps(named)):
        (example,) = load(tmp_path, DIALOGUE[:2], tool_choice=choice, parallel_tool_calls=False)
        assert len(example.tools) == 2
    (example,) = load(tmp_path, DIALOGUE, train_on="last", tool_choice="none")
    assert example.tools == () and example.history[1].calls


ADVICE = "Correct the column or the message, or choose other targets with data.train.train_on."
TWO = calls(call(), call(3, "call_2", "cancel"))
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "arguments": (
        {"messages": [USER, calls({**call(), "function": {"name": "find_order", "arguments": '{"number": '}})]},
        "field 'messages[1].tool_calls[0].function.arguments': expected valid JSON (Expecting value at line 1 column "
        "12), found '{\"number\": '.",
    ),
    "not offered": (
        {"messages": [USER, calls(call(), call(name="refund"))]},
        "field 'messages[1].tool_calls[1]': expected calls of the tools on offer (cancel, find_order), found 'refund'.",
    ),
    "parameter": (
        {"messages": [USER, calls({**call(), "function": {"name": "cancel", "arguments": {}}})]},
        "field 'messages[1].tool_calls[0]': expected the required parameter 'number' of 'cancel', found {}.",
    ),
    "legacy": (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "cancel", "arguments": "3"}}]},
        "field 'messages[1].function_call.arguments': expected an object, found 3.",
    ),
    "result's id": (
        {"messages": [USER, calls(call()), {**RESULT, "tool_call_id": "call_9"}, ANSWER]},
        "field 'messages[2].tool_call_id': expected the id of an earlier call (call_1), found 'call_9'. Correct the id "
        "here or of the call.",
    ),
    "result first": (
        {"messages": [USER, RESULT, ANSWER]},
        "field 'messages[1]': expected a call before its result, found '{\"status\": \"sent\"}'. Add the call, or drop "
        "this.",
    ),
    "role": (
        {"messages": [{"role": "bot", "content": "Hi."}]},
        "field 'messages[0].role': expected one of system, developer, user, human, assistant, gpt, tool_call, "
        "function_call, tool, function, tool_response, observation, found 'bot'. Rename the role.",
    ),
    "no role": (
        {"messages": [{"content": "Hi."}]},
        "field 'messages[0].role': expected a string under this key, found ['content']. The key is missing.",
    ),
    "no content": (
        {"messages": [{"role": "user", "text": "Hi."}, ANSWER]},
        "field 'messages[0].content': expected a string under this key, found ['role', 'text']. The key is missing.",
    ),
    "content": (
        {"messages": [{"role": "user", "content": {"text": "Hi."}}]},
        "field 'messages[0].content': expected text, null or a list of parts, found {'text': 'Hi.'}.",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "See."}, {"type": "image_url"}]}, ANSWER]},
        "field 'messages[0].content[1].type': expected a part of text, found 'image_url'. Drop the part or the record.",
    ),
    "image of a tool": (
        {"messages": [*DIALOGUE[:2], {**RESULT, "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
        "field 'messages[2].content[0].type': expected a part of text, found 'image_url'. Drop the part or the record.",
    ),
    "empty": (
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        "field 'messages[1]': expected text or calls, found 'neither'. Complete the message, or drop it.",
    ),
    "no user": (
        {"messages": [ANSWER]},
        "field 'messages': expected at least one user message, found ['assistant']. Complete the dialogue, or drop it.",
    ),
    "no assistant": (
        {"messages": [USER]},
        "field 'messages': expected at least one assistant message, found ['user']. Complete the dialogue, or drop it.",
    ),
    "no answer": (
        {"messages": [ANSWER, USER]},
        "field 'messages': expected an assistant message after the first of the user, found ['assistant', 'user']. Add "
        "the answer.",
    ),
    "no mark": (
        {"train_on": "marked"},
        "field 'messages': expected an assistant message that is marked by train, loss or weight, found ['user', "
        "'assistant', 'observation', 'assistant']. Mark one, or set data.train.train_on to all or last.",
    ),
    "mark": (
        {"messages": [USER, {**ANSWER, "weight": "0"}], "train_on": "marked"},
        "field 'messages[1].weight': expected true or false, 1 or 0, found '0'. A share of a message's loss is not "
        "supported.",
    ),
    "share of a loss": (
        {"messages": [USER, {**ANSWER, "weight": 0.5}]},
        "field 'messages[1].weight': expected true or false, 1 or 0, found 0.5. A share of a message's loss is not "
        "supported.",
    ),
    "thought without end": (
        {"messages": [USER, {"role": "assistant", "content": "<think>Well, it"}]},
        "field 'messages[1].content': expected a thought with its end, </think>, found '<think>Well, it'. Complete it, "
        "or drop this.",
    ),
    "none": (
        {"tool_choice": "none"},
        f"field 'messages[1]': expected no calls, as tool_choice is 'none', found ['find_order']. {ADVICE}",
    ),
    "required": (
        {"tool_choice": "required"},
        f"field 'messages[3]': expected a call, as tool_choice is 'required', found 'It was sent.'. {ADVICE}",
    ),
    "named": (
        {"tool_choice": {"type": "function", "function": {"name": "cancel"}}},
        f"field 'messages[1]': expected a call of 'cancel', as tool_choice names it, found ['find_order']. {ADVICE}",
    ),
    "name": (
        {"tool_choice": {"type": "function", "function": {"name": "refund"}}},
        "field 'tool_choice': expected a tool on offer (cancel, find_order), found 'refund'.",
    ),
    "choice": (
        {"tool_choice": "any"},
        "field 'tool_choice': expected 'auto', 'none', 'required', or a function as "
        '{"type": "function", "function": {"name": …}}, found \'any\'.',
    ),
    "parallel": (
        {"messages": [USER, TWO], "parallel_tool_calls": False},
        "field 'messages[1]': expected one call, as parallel_tool_calls is false, found ['find_order', 'cancel']. "
        f"{ADVICE}",
    ),
    "parallel's type": (
        {"parallel_tool_calls": "no"},
        "field 'parallel_tool_calls': expected true, false or null, found 'no'.",
    ),
    "tools": (
        {"tools": {"name": "cancel"}},
        "field 'tools': expected a list of tools, found {'name': 'cancel'}.",
    ),
    "messages": (
        {"messages": "[1, 2"},
        "field 'messages': expected valid JSON (Expecting ',' delimiter at line 1 column 6), found '[1, 2'.",
    ),
    "null": ({"messages": None}, "field 'messages': expected a list, found None."),
    "no object": ({"messages": ["Hi."]}, "field 'messages[0]': expected an object, found 'Hi.'."),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named(tmp_path: Path, kind: str) -> None:
    changes, said = FAULTS[kind]
    assert refused(tmp_path, **{"messages": DIALOGUE, **changes}) == said


def test_a_row_of_another_shape_names_its_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        source(tmp_path, {"conversations": [], "tools": "[]"}).load("train")
    assert str(error.value) == (
        f"{tmp_path}/x.jsonl:1: field 'messages': expected a list under this key, found ['conversations', 'tools']. "
        "The key is missing. This record has the columns conversations, tools: use data=sharegpt. Correct it, or leave "
        "bad records out with data.on_bad_record=skip."
    )


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    rows = [{"messages": DIALOGUE, "tools": TOOLS}, {"messages": [USER]}]
    found = source(tmp_path, *rows, on_bad_record="skip")

    assert (len(found.load("train")), found.skipped) == (2, 1)
    with pytest.raises(ValueError, match="train_on: expected 'all', 'last' or 'marked', found 'first'"):
        MessagesSource(train_on="first")  # type: ignore[arg-type]


def test_dialogues_are_held_out_whole(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "content": f"Order {n}?"}, *DIALOGUE[1:]], "tools": TOOLS} for n in range(10)]
    found = source(tmp_path, *rows, val_share=0.2)
    parts = {split: {one.id.split("/")[0] for one in found.load(split)} for split in ("train", "val")}

    assert (len(parts["train"]), len(parts["val"])) == (8, 2)
    assert not parts["train"] & parts["val"]


ODD = [None, 0, 1.5, True, "", "x", "[]", "{}", [], {}, [None], ["x"], [{}], {"type": "text"}, {"name": "cancel"}]
ROW = {
    "messages": [*DIALOGUE, USER, calls(call(3, "call_2"))],
    "tools": TOOLS,
    "tool_choice": {"function": {"name": "find_order"}},
    "parallel_tool_calls": True,
}


def test_mutated_rows_raise_nothing_but_data_errors() -> None:
    """Every value of a row, at any depth, in turn replaced by each of these, and left out."""
    found = MessagesSource(on_bad_record="skip", train_on="last")
    paths = list(_paths(ROW))
    loaded = 0
    for path in paths:
        for odd in (..., *ODD):
            row = json.loads(json.dumps(ROW))
            inner = row
            for step in path[:-1]:
                inner = inner[step]
            if odd is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = odd
            try:
                loaded += bool(found.convert(Record(row, "x", "0")))
            except DataError as error:
                assert str(error).startswith("x: field '")
    assert len(paths) >= 50
    assert 50 < loaded < len(paths) * len(ODD)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


@needs_shared_data
def test_real_dialogues_of_typed_parts_load(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of the 50 calls a tool with a parameter that its own schema has not."""
    path = shared_data / "llama_factory/reason_tool_use_demo_50.jsonl"
    found = MessagesSource(path=str(path), on_bad_record="skip")
    examples = found.load("train")

    assert (len(examples), found.skipped) == (110, 1)
    assert ":18: field 'messages[4].content[1].value': expected parameters that 'get_inflation_rate' has" in caplog.text
    assert {one.target.thought for one in examples}.isdisjoint({THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE})
    assert set(faults_of(examples, None)) == {None}
