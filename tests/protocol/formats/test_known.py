"""What holds for every format of models: regions cover each byte once, no text raises, and what is written is read."""

from __future__ import annotations

import random

import pytest

from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.formats.known import NATIVE, REST, format_named
from src.protocol.output_format import OutputFormat
from src.protocol.types import ParsedResponse
from src.rewards.tool_call import score_parts
from tests.protocol.formats.texts import mutated, texts, tools_and_step

FORMATS = pytest.mark.parametrize("form", NATIVE, ids=lambda form: form.name)


def assert_covers(parsed: ParsedResponse, data: bytes) -> None:
    assert parsed.size == len(data)
    position, last = 0, None
    for span in parsed.spans:
        assert span.start == position < span.stop and span.region is not last
        position, last = span.stop, span.region
    assert position == len(data)


@FORMATS
def test_regions_cover_every_byte_once(form: OutputFormat) -> None:
    for tools, _, text, _ in texts(form, 4000, seed=1):
        data = text.encode()
        assert_covers(form.parse(data, tools), data)
        cut = min(7, len(data))
        whole = form.parse(data, tools)
        rest = form.parse(data[cut:], tools, prefix=data[:cut])
        assert_covers(rest, data[cut:])
        assert (rest.calls, rest.fields, rest.thought) == (whole.calls, whole.fields, whole.thought)


@FORMATS
def test_bytes_that_are_no_text_raise_nothing(form: OutputFormat) -> None:
    rng = random.Random(2)
    for _ in range(1000):
        _, step = tools_and_step(rng)
        data = bytearray(mutated(form.step_text(step), rng).encode())
        for _ in range(3):
            data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
        assert_covers(form.parse(bytes(data)), bytes(data))


@FORMATS
@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", "<function=", "<parameter=", "<parameter=a>", "{", '{"name": "a", ', "<|channel|>", "<|message|>",
     "<think>", '"', "<", "< ", "\\", "<|start|>assistant", " to=", "</tool_call>", "<function=a><parameter=b>c"],
)  # fmt: skip
def test_long_texts_of_one_piece_take_no_time(form: OutputFormat, piece: str) -> None:
    """Half a megabyte: a reader that goes back for each piece would not come to an end."""
    data = (piece * (500_000 // len(piece))).encode()
    tools = (ToolSpec.of("a", "", {"b": {"type": "string"}}),)
    assert_covers(form.parse(data, tools), data)
    assert_covers(form.parse(b"<tool_call>" + data, tools), b"<tool_call>" + data)


@FORMATS
def test_what_is_written_is_read_and_earns_full_marks(form: OutputFormat) -> None:
    read = 0
    for tools, step, text, whole in texts(form, 2000, seed=3):
        if not whole or (form.name == "llama3_json" and (step.thought or (step.calls and step.text))):
            continue  # Llama's template writes neither a thought nor text beside a call
        if form.name == "llama3_json" and "{" in step.text:
            continue  # its server takes a brace for a call
        parsed = form.parse(text.encode(), tools)
        parts = score_parts(parsed, step)
        assert (parts.format, parts.correctness, parts.exact_match) == (1.0, 1.0, 1.0), text
        assert (parsed.thought or "").strip() == step.thought and (parsed.response or "") == step.text
        read += 1
    assert read >= 60


@FORMATS
def test_a_second_answer_behind_the_first_is_left_over(form: OutputFormat) -> None:
    step = Message("assistant", calls=(ToolCall("sky", {"city": "Oslo"}),))
    text = form.step_text(step) + "\n\nAnd more."
    if form.name == "harmony":
        text = form.step_text(step) + "<|end|><|start|>assistant<|channel|>final<|message|>And more."
    parsed = form.parse(text.encode())
    assert parsed.calls == step.calls and parsed.stray and score_parts(parsed, step).format == 0


def test_a_format_is_found_by_its_name() -> None:
    assert format_named("rest") is REST and format_named("hermes").tool_call_parser == "hermes"
    with pytest.raises(
        ConfigError, match=r"prompt\.format: expected one of rest, .*, found 'herms'\. Did you mean hermes"
    ):
        format_named("herms")
