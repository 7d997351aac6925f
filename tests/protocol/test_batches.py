"""Completions read a batch at a time against one at a time, byte by byte, with the lexical walk alone."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from src.protocol.formats import rest
from src.protocol.formats.known import REST
from src.protocol.formats.rest import parse_bytes
from src.protocol.output_format import Reading
from src.protocol.regions import PLAIN, DecodedCompletion, read_completion, read_completions
from src.protocol.token_bytes import LeadingSpace, TokenBytes
from src.protocol.types import ParsedResponse, Region
from tests.fuzzing import PIECES, base_texts, mutated_texts

PREFIXES = ("", "", "<think>\n", "<think>\ud800")
EOS, OTHER_EOS, NO_TOKEN = 256, 70_000, 99_999  # a table has no token for the last two, as padded embeddings may not

CALLS = (
    '{"name": "f", "parameters": {}}',
    ' \t{ "name" : "f" , "parameters" : { "a" : {} } \t} \r',
    '{"name": "", "parameters": {"name": "g", "parameters": {"}": "{"}}}',
    '{"name": "a\\"}{b\\\\", "parameters": {"x": "\\"parameters\\": {}}"}}',
    '{"parameters": {"name": "g", "parameters": {}}, "name": "f"}',
    '{"n\\u0061me": "f", "parameters": {}}',
    '{"name": "f", "p\\u0061rameters": {"parameters": {}}}',
    '{"name": "f", "parameters": {"a": [{"name": "g"}]}}  \x0b',
    '{"name": "漢", "parameters": {"🌧": "\ufffd"}}',
    '{"name": "f", "parameters": {}, "id": 1}',
    '{"name": "f", "parameters": {"a": 1, "a": 2}}',
    "", " ", "\x0c",
)  # fmt: skip


def one_by_one(
    ids: Sequence[int], table: TokenBytes, stop_ids: Collection[int], prefix: str, patch: pytest.MonkeyPatch
) -> tuple[str, ParsedResponse, list[int]]:
    """Text, parsed response and regions of a completion, each token and each byte in turn."""
    pieces: list[bytes] = []
    for index in ids:
        if index in stop_ids:
            break
        piece = table.tokens[index] if 0 <= index < len(table.tokens) else b""
        if not pieces and table.leading_space == "drop_all":
            piece = piece.lstrip(b" ")
        elif not pieces and table.leading_space == "drop_one":
            piece = piece.removeprefix(b" ")
        pieces.append(piece)
    sampled = b"".join(pieces)
    with patch.context() as patched:
        patched.setattr(rest, "_fill_calls", lambda *args: False)
        parsed = parse_bytes(sampled, prefix=prefix.encode("utf-8", "surrogatepass"))
    of_byte = [int(span.region) for span in parsed.spans for _ in range(span.start, span.stop)]
    regions, position = [], 0
    for piece in pieces:
        regions.append(of_byte[position] if piece else int(Region.FORMAT))
        position += len(piece)
    regions += [int(Region.FORMAT)] * (len(ids) - len(pieces))
    return prefix + sampled.decode("utf-8", "replace"), parsed, regions


def assert_same(read: DecodedCompletion, expected: tuple[str, ParsedResponse, list[int]]) -> None:
    text, parsed, regions = expected
    assert read.text == text
    assert repr(read.parsed) == repr(parsed)  # == would take 1 for 1.0 and true
    assert read.regions.dtype == torch.int64
    assert read.regions.tolist() == regions


def cut(data: bytes, tokens: Sequence[bytes], generator: random.Random) -> Iterator[int]:
    """Ids of random tokens that spell `data`, with tokens of no bytes and unknown ids among them."""
    starting: dict[int, list[int]] = {}
    for index, token in enumerate(tokens):
        if len(token) > 1 and index != EOS:
            starting.setdefault(token[0], []).append(index)
    position = 0
    while position < len(data):
        fitting = [index for index in starting.get(data[position], ()) if data.startswith(tokens[index], position)]
        index = generator.choice(fitting) if fitting and generator.random() < 0.6 else data[position]
        yield index
        position += len(tokens[index])
        if generator.random() < 0.01:
            yield generator.choice((len(tokens) - 1, NO_TOKEN, -1))


@pytest.mark.parametrize("leading_space", ["keep", "drop_one", "drop_all"])
def test_a_batch_reads_as_its_completions_do(leading_space: LeadingSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real and mutated texts in random tokens, which split characters and surrogates; stop tokens anywhere; nothing."""
    generator = random.Random(20260102)
    heads = {piece.encode("utf-8", "surrogatepass")[:size] for piece in PIECES for size in (2, 3, 5, 9, 20)}
    tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>", *sorted(heads - {b""}), b" <", b"   {", b""]
    table = TokenBytes(tuple(tokens), leading_space)
    batch, prefixes = [], []
    for text in (*mutated_texts(600, seed=3), *base_texts()[:100]):
        spaces = b" " * generator.choice((0, 0, 1, 3))
        ids = list(cut(spaces + text.encode("utf-8", "surrogatepass"), tokens, generator))
        for stop in generator.choice(((), (EOS,), (OTHER_EOS,), (EOS, EOS, OTHER_EOS))):
            ids.insert(generator.randrange(len(ids) + 1), stop)
        batch.append(ids if generator.random() < 0.96 else [])
        prefixes.append(generator.choice(PREFIXES))
    for stop_ids in ((EOS, OTHER_EOS), {EOS}, ()):
        read = read_completions(
            [torch.tensor(ids, dtype=torch.int64) for ids in batch],
            table,
            stop_ids,
            [Reading(REST, prefix) for prefix in prefixes],
        )
        for ids, prefix, one in zip(batch, prefixes, read, strict=True):
            assert_same(one, one_by_one(ids, table, stop_ids, prefix, monkeypatch))


@pytest.mark.parametrize("name", ["smollm2", "mistral"])
def test_a_batch_of_real_targets(
    name: str, rlla_targets: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(name)
    table, stop = TokenBytes.from_tokenizer(tokenizer), int(tokenizer.eos_token_id)
    batch = [[*tokenizer.encode(text, add_special_tokens=False), stop] for text in rlla_targets[:150]]
    read = read_completions([torch.tensor(ids) for ids in batch], table, (stop,), [PLAIN] * len(batch))
    for ids, one in zip(batch, read, strict=True):
        assert_same(one, one_by_one(ids, table, (stop,), "", monkeypatch))
        assert torch.equal(one.regions, read_completion(torch.tensor(ids), table, (stop,)).regions)


def test_nothing_to_read() -> None:
    table = TokenBytes((b"a",))
    empty = torch.empty(0, dtype=torch.int64)
    assert read_completions([], table, (), []) == []
    assert [
        one.regions.tolist() for one in read_completions([empty, empty], table, (0,), [PLAIN, Reading(REST, "<think>")])
    ] == [[], []]
    assert table.decode_batch(np.array([0, 0], dtype=np.int64), [0, 2, 0], (0,)).texts == [b"", b"", b""]


def test_whole_calls_have_the_regions_of_the_lexical_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of lines as a block, with the pattern of whole calls and without."""
    blocks = [f"<tool_call>{a}\n{b}{end}</tool_call>" for a in CALLS for b in CALLS for end in ("", "\n", " \n ")]
    texts = [f"<think> t </think>{block}".encode() for block in blocks]
    quick = [parse_bytes(text) for text in texts]
    taken = sum(parsed.calls is not None for parsed in quick)
    monkeypatch.setattr(rest, "_fill_calls", lambda *args: False)
    assert list(map(repr, quick)) == [repr(parse_bytes(text)) for text in texts]
    assert taken > 100
