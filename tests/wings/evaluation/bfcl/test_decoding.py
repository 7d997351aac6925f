import json

import pytest

from src.protocol.dialogue import ToolCall
from src.protocol.formats.rest import parse
from src.wings.evaluation.bfcl.decoding import MAX_DEPTH, decode_calls, is_unparsed

A, B = ToolCall("a", {}), ToolCall("b", {"x": [1, {"y": None}]})
LINE_A, LINE_B = '{"name": "a", "parameters": {}}', '{"name": "b", "parameters": {"x": [1, {"y": null}]}}'


def call_with(value: str) -> str:
    return '{"name": "a", "parameters": {"x": ' + value + "}}"


def block(*lines: str) -> str:
    return "\n".join(["<think> So. </think>", "<tool_call>", *lines, "</tool_call>"])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (block(LINE_A, LINE_B), (A, B)),
        ("", ()),
        ("<response> No tool does that. </response>", ()),
        (LINE_A, ()),  # no tag
        (block(), ()),
        # what the project's parser refuses as a whole
        (block(LINE_A, "and then", "", LINE_B + "  "), (A, B)),
        ("<tool_call>" + LINE_A, (A,)),
        (block(LINE_A) + block(LINE_B), (B,)),  # the last block
        ("<think> <tool_call> </think>" + block(LINE_A), (A,)),
        (f"<tool_call>{LINE_A}</tool_call>{LINE_B}", (A,)),
        (block('{"name": "a", "parameters": {}, "id": 7}'), (A,)),
        (block('{"name": "z", "name": "a", "parameters": {"x": 1}, "parameters": {}}'), (A,)),
        # no calls
        (block('{"name": "none", "parameters": {}}', '{"name": " None ", "parameters": 3}', LINE_A), (A,)),
        (block('{"name": "a"}', '{"parameters": {}}', "{}", '{"name": 3, "parameters": {}}', "[]", "7", "null"), ()),
        (block(f"[{LINE_A}]"), ()),  # a list of calls is not a call
        (block('{"name": "a",', '"parameters": {}}'), ()),  # a call over two lines
        (block(LINE_A, '{"name": "b", "parameters": [1]}'), ()),  # void as a whole
        (block(LINE_A, '{"name": "b", "parameters": "{}"}'), ()),
    ],
)
def test_published_rule(text, calls):
    assert decode_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "unparsed"),
    [
        # refusals
        ("", False),
        ("Hm.", False),
        ("<response> No tool does that. </response>", False),
        (block('{"name": "None", "parameters": {}}'), False),
        ("<think> No <tool_call> fits. </think>\n<response> No. </response>", False),
        # calls
        (block(LINE_A), False),
        (block(LINE_A, "and then"), False),
        ("<think> A <tool_call> </think>" + block(LINE_A), False),
        # calls that cannot be read
        (block('{"name": "a", "parameters": {'), True),
        ('<think> So. </think>\n<tool_call>\n{"name": "a", "para', True),
        (block('{"name": "a"}'), True),
        (block("a()"), True),
        (block(), True),
        (block(LINE_A, '{"name": "b", "parameters": [1]}'), True),
        (block(LINE_A) + "<tool_call>", True),  # the last block counts
    ],
)
def test_which_answers_cannot_be_parsed(text, unparsed):
    assert is_unparsed(text) is unparsed


def test_not_a_number_is_a_value():
    (call,) = decode_calls(block('{"name": "a", "parameters": {"x": NaN, "y": -Infinity}}'))
    assert str(call.parameters) == "{'x': nan, 'y': -inf}"


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", ('{"k":', "}")])
def test_deep_nesting_is_no_call(depth, brackets):
    nested = brackets[0] * depth + "1" + brackets[1] * depth
    assert decode_calls(block(call_with(nested), LINE_A)) == (A,)


def test_nesting_below_the_limit_is_a_call():
    depth = MAX_DEPTH - 3  # the call, its parameters and the innermost value are levels too
    (call,) = decode_calls(block(call_with("[" * depth + "1" + "]" * depth)))
    assert json.dumps(call.parameters).count("[") == depth


def test_an_integer_too_long_to_convert_is_no_call():
    assert decode_calls(block(call_with("9" * 5000), LINE_A)) == (A,)


def test_well_formed_answers_read_as_the_project_reads_them():
    text = block(LINE_A, LINE_B)
    assert decode_calls(text) == parse(text).calls
