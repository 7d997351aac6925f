"""The region of each sampled token, on small tables worked out by hand."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from src.protocol.dialogue import Message
from src.protocol.formats.known import REST, format_named
from src.protocol.output_format import Reading
from src.protocol.regions import read_completion
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.rewards.tool_call import format_score

F, N, P = Region.FORMAT, Region.TOOL_NAME, Region.TOOL_PARAMETERS
R, A, X = Region.REASONING, Region.RESPONSE, Region.OTHER


def regions_of(pieces: list[bytes], stop: int = 0, prefix: str = "") -> list[int]:
    """Regions of tokens with these bytes, followed by a stop token and `stop` more."""
    table = TokenBytes((*pieces, b"<eos>"))
    ids = torch.tensor([*range(len(pieces)), *[len(pieces)] * stop])
    return read_completion(ids, table, {len(pieces)}, Reading(REST, prefix)).regions.tolist()


def test_a_token_that_straddles_a_border_belongs_to_its_first_byte() -> None:
    pieces = [b"<th", b"ink> ", b"Hm", b". </", b"think>\n<tool_call>\n{", b'"name": "s', b"ky", b'", "parameters": {', b'"x"', b": 1}", b"}\n</tool_call>"]  # fmt: skip # noqa: E501
    #         <th  ink>_  Hm  ._</  think>…{  "name": "s  ky  …{  "x"  : 1}  }…
    assert regions_of(pieces) == [F, F, R, R, F, F, N, F, P, P, F]


def test_multi_byte_characters_may_be_split_over_tokens() -> None:
    cloud = "🌧".encode()  # four bytes
    pieces = [
        b"<think>",
        cloud[:1],
        cloud[1:3],
        cloud[3:] + b"</think>",
        b"<response>",
        b"\xc3",
        b"\xa9",
        b"</response>",
    ]
    assert regions_of(pieces) == [F, R, R, R, F, A, A, F]


def test_bytes_that_are_not_utf8_keep_their_positions() -> None:
    pieces = [b"<think>", b"\xff\xfe", b"\xf0\x9f", b"</think>", b"\xe6", b"<response>", b"ok", b"</response>"]
    assert regions_of(pieces) == [F, R, R, F, X, F, A, F]
    table = TokenBytes(tuple(pieces))
    read = read_completion(torch.arange(len(pieces)), table, ())
    assert read.text == "<think>\ufffd\ufffd\ufffd</think>\ufffd<response>ok</response>"
    assert read.parsed.size == 7 + 2 + 2 + 8 + 1 + 10 + 2 + 11


def test_the_stop_token_and_what_follows_are_format_and_not_text() -> None:
    table = TokenBytes((b"<response>", b"hi", b"<eos>", b"!"))
    read = read_completion(torch.tensor([0, 1, 2, 1, 3]), table, {2})
    assert read.text == "<response>hi"
    assert read.regions.tolist() == [F, A, F, F, F]
    assert read_completion(torch.tensor([2]), table, {2, 9}).regions.tolist() == [F]
    # Without a stop id it is text like any other.
    assert read_completion(torch.tensor([0, 1, 2]), table, ()).regions.tolist() == [F, A, A]


def test_a_native_answer_is_closed_by_its_stop_token() -> None:
    table = TokenBytes((b"hi", b'<tool_call>{"name": "f", "arguments": {}}</tool_call>', b"<eos>"))
    hermes = Reading(format_named("hermes"))
    for ids in ([0], [1], [0, 1]):
        ended, cut = (read_completion(torch.tensor(one), table, {2}, hermes).parsed for one in ([*ids, 2], ids))
        assert all(ended.closed) and cut.closed == (*ended.closed[:-1], False)
        assert (cut.fields, cut.calls, cut.response) == (ended.fields, ended.calls, ended.response)
    assert read_completion(torch.tensor([2]), table, {2}, hermes).parsed.closed == ()
    target = Message("assistant", "hi")
    read = [read_completion(torch.tensor(ids), table, {2}, hermes).parsed for ids in ([0, 2], [0])]
    assert [format_score(one, target) for one in read] == [1.0, 0.0]


def test_tokens_without_bytes_are_format() -> None:
    table = TokenBytes((b"<think>", b"", b"a"))
    assert read_completion(torch.tensor([0, 2, 1, 77, 2]), table, ()).regions.tolist() == [F, R, F, F, R]


def test_a_template_prefix_opens_the_thought() -> None:
    pieces = [b" Rain", b"? ", b"</think>", b"<response>", b"No"]
    assert regions_of(pieces, stop=1, prefix="<think>\n") == [R, R, F, F, A, F]
    # Without it the thought is text outside of any field, after a space that is white space between parts.
    assert regions_of(pieces) == [F, X, X, F, A]
    table = TokenBytes(tuple(pieces))
    read = read_completion(torch.arange(5), table, (), Reading(REST, "<think>\n"))
    assert read.text == "<think>\n Rain? </think><response>No"
    assert read.parsed.fields == ("think", "response")


def test_a_leading_space_that_decode_drops_moves_nothing() -> None:
    table = TokenBytes((b" <", b"think>", b" a", b"</think>", b" "), leading_space="drop_one")
    assert read_completion(torch.tensor([0, 1, 2, 3, 0]), table, ()).regions.tolist() == [F, F, R, F, F]
    assert read_completion(torch.tensor([4, 1]), table, ()).text == "think>"


def test_added_tokens_like_qwen3s(qwen_like: PreTrainedTokenizerBase) -> None:
    table = TokenBytes.from_tokenizer(qwen_like)
    text = '<think>漢🙂</think>\n<tool_call>\n{"name": "sky", "parameters": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    ids = torch.tensor(qwen_like.encode(text, add_special_tokens=False))
    stop = qwen_like.convert_tokens_to_ids("<|im_end|>")
    read = read_completion(ids, table, {stop})
    assert read.text == text.removesuffix("<|im_end|>")
    found: dict[int, bytes] = {}
    for index, region in zip(ids.tolist(), read.regions.tolist(), strict=True):
        found[region] = found.get(region, b"") + table.tokens[index]
    assert found[R].decode() == "漢🙂"
    assert found[N] == b"sky"
    assert found[P].endswith(b'city": "Oslo"}}')  # the token of the last brace began inside
    assert found[F].startswith(b"<think></think>")
    assert found[F].endswith(b"</tool_call><|im_end|>")
