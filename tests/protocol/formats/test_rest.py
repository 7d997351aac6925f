"""The output protocol on well-formed, malformed and hostile texts."""

from __future__ import annotations

import pytest

from src.protocol.dialogue import ToolCall
from src.protocol.formats.rest import parse, parse_bytes
from src.protocol.types import ParsedResponse, Region


def marked(text: str, prefix: str = "") -> list[tuple[str, str]]:
    """The text cut into its spans: (region, piece)."""
    data = text.encode("utf-8", "surrogatepass")
    parsed = parse(text, prefix=prefix)
    assert_partition(parsed, len(data))
    return [(span.region.label, data[span.start : span.stop].decode()) for span in parsed.spans]


def assert_partition(parsed: ParsedResponse, size: int) -> None:
    assert parsed.size == size
    stops = [0, *(span.stop for span in parsed.spans)]
    assert [span.start for span in parsed.spans] == stops[:-1]
    assert stops[-1] == size
    assert all(span.start < span.stop for span in parsed.spans)
    assert all(a.region != b.region for a, b in zip(parsed.spans, parsed.spans[1:], strict=False))


def test_well_formed_parallel_calls_and_response() -> None:
    text = (
        "<think> Två städer. </think>\n<tool_call>\n"
        '{"name": "sky", "parameters": {"city": "Malmö"}}\n'
        '{"name": "wind", "parameters": {"at": {"x": [1, "}"]}, "quote": "\\"{"}}\n'
        "</tool_call>\n<response> Wait. </response>"
    )
    parsed = parse(text)
    assert parsed.fields == ("think", "tool_call", "response")
    assert parsed.closed == (True, True, True)
    assert not parsed.stray
    assert parsed.thought == " Två städer. "
    assert parsed.response == " Wait. "
    assert parsed.calls == (
        ToolCall("sky", {"city": "Malmö"}),
        ToolCall("wind", {"at": {"x": [1, "}"]}, "quote": '"{'}),
    )
    assert marked(text) == [
        ("format", "<think>"),
        ("reasoning", " Två städer. "),
        ("format", '</think>\n<tool_call>\n{"name": "'),
        ("tool_name", "sky"),
        ("format", '", "parameters": '),
        ("tool_parameters", '{"city": "Malmö"}'),
        ("format", '}\n{"name": "'),
        ("tool_name", "wind"),
        ("format", '", "parameters": '),
        ("tool_parameters", '{"at": {"x": [1, "}"]}, "quote": "\\"{"}'),
        ("format", "}\n</tool_call>\n<response>"),
        ("response", " Wait. "),
        ("format", "</response>"),
    ]


def test_keys_in_any_order_and_compact_json() -> None:
    call = '{"parameters":{"name":"inner","parameters":{}},"name":"outer"}'
    text = f"<think></think><tool_call>{call}</tool_call>"
    assert parse(text).calls == (ToolCall("outer", {"name": "inner", "parameters": {}}),)
    assert marked(text) == [
        ("format", '<think></think><tool_call>{"parameters":'),
        ("tool_parameters", '{"name":"inner","parameters":{}}'),
        ("format", ',"name":"'),
        ("tool_name", "outer"),
        ("format", '"}</tool_call>'),
    ]


def test_a_thought_may_mention_other_tags() -> None:
    text = "<think> put it in <tool_call> {} </tool_call> or <response> </think>\n<response>ok</response>"
    parsed = parse(text)
    assert parsed.fields == ("think", "response")
    assert parsed.calls is None
    assert marked(text)[1] == ("reasoning", " put it in <tool_call> {} </tool_call> or <response> ")
    assert parse("<response>a <think> b</response>").fields == ("response",)


def test_prefix_counts_for_fields_and_not_for_spans() -> None:
    parsed = parse("\nHm. </think>\n<response> Yes. </response>", prefix="<think>")
    assert parsed.fields == ("think", "response")
    assert parsed.closed == (True, True)
    assert parsed.thought == "\nHm. "
    assert marked("\nHm. </think>\n<response> Yes. </response>", prefix="<think>\n")[:2] == [
        ("reasoning", "\nHm. "),
        ("format", "</think>\n<response>"),
    ]
    assert marked("Hm", prefix="<think>\n") == [("reasoning", "Hm")]
    # A model that opens the field again only writes text in it.
    assert marked("<think>Hm</think>", prefix="<think>\n") == [("reasoning", "<think>Hm"), ("format", "</think>")]


def test_fields_that_are_missing_unclosed_or_repeated() -> None:
    assert parse("").fields == ()
    assert parse("").spans == ()
    unclosed = parse("<think> on and on")
    assert (unclosed.fields, unclosed.closed, unclosed.thought) == (("think",), (False,), " on and on")
    assert marked("<think> on and on") == [("format", "<think>"), ("reasoning", " on and on")]
    twice = parse("<think>a</think><think>b</think>")
    assert (twice.fields, twice.thought) == (("think", "think"), "a")
    # A model that goes on with a second block makes its calls too.
    block = '<tool_call>\n{{"name": "{}", "parameters": {{}}}}\n</tool_call>'
    text = block.format("f") + block.format("g")
    assert parse(text).calls == (ToolCall("f", {}), ToolCall("g", {}))
    assert parse(text + "<tool_call>").calls is None  # one that is not closed
    assert parse(text + "<tool_call>\ng()\n</tool_call>").calls is None
    assert [piece for region, piece in marked(text) if region == "tool_name"] == ["f", "g"]


def test_an_unclosed_block_has_regions_but_no_calls() -> None:
    text = '<tool_call>\n{"name": "sky", "parameters": {"city": "Os'
    assert parse(text).calls is None
    assert marked(text)[-3:] == [
        ("tool_name", "sky"),
        ("format", '", "parameters": '),
        ("tool_parameters", '{"city": "Os'),
    ]
    assert marked('<tool_call>\n{"name": "sk')[-1] == ("tool_name", "sk")
    assert parse('<tool_call>\n{"name": "sky", "parameters": {}}\n').calls is None


def test_text_outside_of_fields_is_other_and_stray() -> None:
    text = " Sure!\n<think>a</think> then \n<response>b</response>\n"
    assert marked(text) == [
        ("format", " "),
        ("other", "Sure!"),
        ("format", "\n<think>"),
        ("reasoning", "a"),
        ("format", "</think> "),
        ("other", "then"),
        ("format", " \n<response>"),
        ("response", "b"),
        ("format", "</response>\n"),
    ]
    assert parse(text).stray
    assert parse("<think>a</think></think>").stray
    assert not parse("\n<think>a</think>\n\n<response>b</response> ").stray


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "f", "parameters": {"x": NaN}}',
        '{"name": "f", "parameters": {"x": -Infinity}}',
        '{"name": "f", "parameters": {"x": 1, "x": 1}}',
        '{"name": "f", "name": "f", "parameters": {}}',
        '{"name": "f", "parameters": {}, "id": 1}',
        '{"name": "f"}',
        '{"name": 1, "parameters": {}}',
        '{"name": "f", "parameters": []}',
        '{"name": "f", "arguments": {}}',
        '[{"name": "f", "parameters": {}}]',
        '{"name": "f", "parameters": {}},',
        '{"name": "f", "parameters": {"x": ' + "1" * 5000 + "}}",
        '{"name": "f", "parameters": ' + '{"x": ' * 20_000 + "1" + "}" * 20_001,
        "null",
        'f(x="1")',
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_call_fails_the_block(line: str) -> None:
    good = '{"name": "g", "parameters": {"y": 2}}'
    text = f"<tool_call>\n{good}\n{line}\n</tool_call>"
    assert parse(text).calls is None
    regions = marked(text)
    assert ("tool_name", "g") in regions
    assert ("tool_parameters", '{"y": 2}') in regions


def test_blank_lines_and_an_empty_block() -> None:
    assert parse('<tool_call>\n\n{"name": "f", "parameters": {}}\n \r\n</tool_call>').calls == (ToolCall("f", {}),)
    assert parse("<tool_call>\n</tool_call>").calls == ()
    assert parse("<think></think>").calls is None


def test_a_call_without_its_last_brace_ends_before_the_next() -> None:
    text = '<tool_call>\n{"name": "f", "parameters": {"x": "a"\n{"name": "g", "parameters": {"y": 1}}\n</tool_call>'
    assert parse(text).calls is None
    assert marked(text) == [
        ("format", '<tool_call>\n{"name": "'),
        ("tool_name", "f"),
        ("format", '", "parameters": '),
        ("tool_parameters", '{"x": "a"'),
        ("format", '\n{"name": "'),
        ("tool_name", "g"),
        ("format", '", "parameters": '),
        ("tool_parameters", '{"y": 1}'),
        ("format", "}\n</tool_call>"),
    ]


def test_a_call_over_several_lines_and_words_around_calls() -> None:
    text = '<tool_call>\nCalling: [{\n  "name": "f",\n  "parameters": {\n    "x": 1\n  }\n}]\n</tool_call>'
    assert parse(text).calls is None
    assert marked(text) == [
        ("format", "<tool_call>\n"),
        ("other", "Calling: ["),
        ("format", '{\n  "name": "'),
        ("tool_name", "f"),
        ("format", '",\n  "parameters": '),
        ("tool_parameters", '{\n    "x": 1\n  }'),
        ("format", "\n}"),
        ("other", "]"),
        ("format", "\n</tool_call>"),
    ]


def test_positions_are_bytes() -> None:
    text = "<think>漢é🙂</think>"  # 3 + 2 + 4 bytes after the 7 of the tag
    assert [(span.start, span.stop) for span in parse(text).spans] == [(0, 7), (7, 16), (16, 24)]
    lone = parse("<think>\ud800</think>")  # a lone surrogate takes 3 bytes and reads as 3 unreadable ones
    assert [(span.start, span.stop) for span in lone.spans] == [(0, 7), (7, 10), (10, 18)]
    assert lone.thought == "\ufffd" * 3
    broken = parse_bytes(b"<think>\xe6\xbc</think>")
    assert (broken.size, broken.thought) == (17, "\ufffd")


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "<think></think>",
        "<tool_call>{",
        '<tool_call>{"',
        '{"a":',
        '"\\',
        '{"name"\n',
        "{\n ",
        " ",
        "<",
        '"a" ',
    ],
)
def test_a_long_hostile_text_is_read_in_one_pass(unit: str) -> None:
    """100,000 repeats; a scan that starts over at each of them would not come back within minutes."""
    text = "<tool_call>\n{" + unit * 100_000
    assert_partition(parse(text), len(text))


def test_regions_are_labelled() -> None:
    assert [region.label for region in Region] == [
        "format", "tool_name", "tool_parameters", "reasoning", "response", "other",
    ]  # fmt: skip
