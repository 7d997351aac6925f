"""Held-out dialogues, and the tags of steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.data.sources.base import REFUSAL, dialogue_key, hold_out, json_calls, target_tags
from src.data.sources.toolace import ToolAceSource
from src.data.sources.tools import tool_specs
from src.protocol.dialogue import ChatPrompt, DataError, Message, ToolCall, TurnExample

CALL = ToolCall("f", {})
SYSTEM = 'Here is a list of functions in JSON format that you can invoke:\n[{"name": "f", "parameters": {}}]'


def multi_turn(number: int) -> dict[str, Any]:
    turns = [
        ("user", f"Request {number}"),
        ("assistant", "[f()]"),
        ("tool", str(number)),
        ("assistant", f"It is {number}."),
    ]
    return {"system": SYSTEM, "conversations": [{"from": role, "value": text} for role, text in turns]}


def corpus(folder: Path, records: list[dict[str, Any]], **options: Any) -> ToolAceSource:
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return ToolAceSource(path=str(path), **options)


def requests(examples: list[TurnExample]) -> set[str]:
    return {example.history[0].text for example in examples}


def test_turns_of_a_dialogue_are_on_one_side(tmp_path: Path) -> None:
    source = corpus(tmp_path, [multi_turn(n) for n in range(30)], val_count=7)
    train, val = source.load("train"), source.load("val")

    assert (len(train), len(val)) == (2 * 23, 2 * 7)
    assert not requests(train) & requests(val)
    assert requests(train) | requests(val) == {f"Request {n}" for n in range(30)}


def test_duplicates_are_on_one_side(tmp_path: Path) -> None:
    # every dialogue three times, once cut short after its first step: 20 distinct openings
    records = [multi_turn(n) for n in range(20)]
    short = [{**record, "conversations": record["conversations"][:2]} for record in records]
    source = corpus(tmp_path, [*records, *short, *records], val_share=0.25)
    train, val = source.load("train"), source.load("val")

    assert (len(requests(train)), len(requests(val))) == (15, 5)
    assert not requests(train) & requests(val)
    assert (len(train), len(val)) == (15 * 5, 5 * 5)


def test_the_choice_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    records = [multi_turn(n) for n in range(40)]
    chosen = requests(corpus(tmp_path, records, val_count=10).load("val"))

    assert requests(corpus(tmp_path, records[::-1], val_count=10).load("val")) == chosen
    assert requests(corpus(tmp_path, records, val_count=10, seed=1).load("val")) != chosen
    assert requests(corpus(tmp_path, records, val_count=5).load("val")) < chosen  # fewer are a subset


def test_without_a_share_there_is_no_val_split(tmp_path: Path) -> None:
    source = corpus(tmp_path, [multi_turn(0)])

    assert source.splits() == ("train",)
    with pytest.raises(ValueError, match=r"source 'toolace': expected a split of \('train',\), found 'val'.*val_count"):
        source.load("val")


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [
        (2, 0.5, "expected one of them, found 2 and 0.5"),
        (-1, 0.0, "expected at least 0 and in"),
        (0, 1.0, "expected at least 0 and in"),
        (3, 0.0, "3 of 3 dialogues held out, none left to train on"),
    ],
)
def test_impossible_shares_are_refused(count: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out(["a", "b", "c", "a"], count, share, seed=0)


def test_a_share_is_rounded_to_dialogues() -> None:
    keys = [str(n) for n in range(10)]

    assert [len(hold_out(keys, 0, share, seed=0)) for share in (0.0, 0.04, 0.06, 0.34)] == [0, 0, 1, 3]


def test_a_rendered_prompt_belongs_to_the_dialogue_that_it_opens_with() -> None:
    first = TurnExample((), (), Message("assistant", "x"), "s", "0", ChatPrompt("tools", "<user> a </user>"))
    later = replace(first, prompt=ChatPrompt("tools", "<user> a </user>\n\n<response> x </response>\n<user> b </user>"))
    others = [
        replace(first, prompt=ChatPrompt("tools", "<user> b </user>")),
        replace(first, prompt=ChatPrompt("other tools", "<user> a </user>")),
    ]

    assert dialogue_key(first) == dialogue_key(later)
    assert dialogue_key(first) not in map(dialogue_key, others)


def test_tags_name_the_kind_of_a_step() -> None:
    kinds = [
        Message("assistant", calls=(CALL,)),
        Message("assistant", calls=(CALL, CALL)),
        Message("assistant", "x"),
        Message("assistant", "x", calls=(CALL,)),
    ]
    assert [target_tags(kind)[0] for kind in kinds] == [
        "single_call",
        "parallel_calls",
        "response",
        "call_and_response",
    ]
    assert target_tags(Message("assistant", REFUSAL)) == ("response", "refusal")


def test_calls_in_json_have_arguments_or_parameters() -> None:
    both = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "parameters": {}}]

    assert json_calls(both, "x", "answers") == (ToolCall("f", {"x": 1}), ToolCall("g", {}))
    assert json_calls(both[0], "x", "answers") == (ToolCall("f", {"x": 1}),)
    with pytest.raises(DataError, match=r"^x: field 'answers': expected a list of calls, found 7\.$"):
        json_calls(7, "x", "answers")
    with pytest.raises(DataError, match=r"^x: field 'answers\[1\]': expected an object, found 'f'\.$"):
        json_calls([both[0], "f"], "x", "answers")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f", "arguments": '{"x": [1]}'}, {"x": [1]}),
        ({"name": "f", "parameters": "{}"}, {}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f", "arguments": "null"}, {}),
        ({"name": "f", "arguments": None, "parameters": {"x": 1}}, {"x": 1}),
        ({"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}, {"x": 1}),
    ],
)
def test_calls_as_openai_has_them_are_read(call: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert json_calls([call], "x", "answers") == (ToolCall("f", arguments),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "f", "arguments": "[1]"}, "answers[0].arguments': expected an object, found [1]."),
        (
            {"name": "f", "arguments": '{"a": 1, "a": 2}'},
            "answers[0].arguments.a': expected this key once in its object, found [1, 2].",
        ),
        (
            {"function": {"name": "f", "arguments": "x=1"}},
            "answers[0].function.arguments': expected valid JSON (Expecting value at line 1 column 1), found 'x=1'.",
        ),
        (
            {"name": "f"},
            "answers[0].arguments': expected an object under this key, found ['name']. The key is missing.",
        ),
    ],
)
def test_arguments_in_json_text_are_parsed_strictly(call: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        json_calls([call], "x", "answers")
    assert str(error.value) == f"x: field '{message}"


def test_lines_that_do_not_parse_are_skipped_like_other_bad_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.jsonl"
    good = json.dumps(multi_turn(0))
    path.write_text(f'{good}\n{{"system"\n{good}\n{{"system": 1, "system": 2}}\n')
    source = ToolAceSource(path=str(path), on_bad_record="skip")

    assert [example.id for example in source.load("train")] == ["x-1/0", "x-1/1", "x-3/0", "x-3/1"]
    assert source.skipped == 2
    assert caplog.messages == [
        f"Bad record skipped: {path}:2: field 'line': expected valid JSON (Expecting ':' delimiter at line 1 column "
        "10), found '{\"system\"'.",
        f"Bad record skipped: {path}:4: field 'system': expected this key once in its object, found [1, 2].",
        "toolace: 2 bad records skipped, 4 examples read.",
    ]


def test_only_the_error_of_a_record_says_how_to_skip_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("7\n")
    with pytest.raises(DataError) as error:
        ToolAceSource(path=str(path)).load("train")
    assert str(error.value) == (
        f"{path}:1: field 'record': expected an object, found 7. Correct it, or leave bad records out with "
        "data.on_bad_record=skip."
    )
    (tmp_path / "x.json").write_text("7")
    for choice in ("error", "skip"):
        with pytest.raises(DataError) as error:
            ToolAceSource(path=str(tmp_path / "x.json"), on_bad_record=choice).load("train")
        assert str(error.value).endswith("a JSON list of records, found 7. Use .jsonl for one record a line.")


def test_examples_know_their_place(tmp_path: Path) -> None:
    source = corpus(tmp_path, [multi_turn(0), multi_turn(1)])

    assert [example.where for example in source.load("train")] == [f"{source.path}[{index}]" for index in (0, 0, 1, 1)]


def test_the_key_of_a_dialogue_never_changes() -> None:
    """Which dialogues are held out depends on it."""
    tool = {"name": "sky", "parameters": {"city": {"type": "str"}, "day": {"description": "When.", "default": 1}}}
    for parameters in (tool["parameters"], {"type": "object", "properties": tool["parameters"], "required": ["city"]}):
        (spec,) = tool_specs([{**tool, "parameters": parameters}], "x", "tools")
        example = TurnExample((spec,), (Message("user", "Sun?"),), Message("assistant", "Yes."), "doc", "0")
        assert dialogue_key(example)[:16] == "5c11144b83be63cb"
