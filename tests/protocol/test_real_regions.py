"""Regions of all 400 real targets under real tokenizers, against an independent reading of the text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from src.protocol.formats.rest import parse
from src.protocol.regions import TokenBytes, read_completion
from src.protocol.types import Region

TOKENIZERS = ("smollm2", "mistral", "byte_fallback")


def expected_bytes(text: str) -> np.ndarray:
    """Region of each byte of a well-formed target, by plain slicing: the first closing tag ends the thought."""
    data = text.encode()
    regions = np.full(len(data), Region.FORMAT)

    def paint(start: int, stop: int, region: Region) -> None:
        regions[start:stop] = region

    thought_stop = data.index(b"</think>")
    paint(len("<think>"), thought_stop, Region.REASONING)
    position = thought_stop + len("</think>\n")
    if data.startswith(b"<tool_call>\n", position):
        position += len("<tool_call>\n")
        for line in data[position : data.index(b"\n</tool_call>", position)].split(b"\n"):
            name_start = position + len('{"name": "')
            name_stop = data.index(b'", "parameters": ', name_start)
            paint(name_start, name_stop, Region.TOOL_NAME)
            paint(name_stop + len('", "parameters": '), position + len(line) - 1, Region.TOOL_PARAMETERS)
            position += len(line) + 1
        position += len("</tool_call>\n")
    if data.startswith(b"<response>", position):
        paint(position + len("<response>"), len(data) - len("</response>"), Region.RESPONSE)
    return regions


def test_real_targets_parse(rlla_targets: list[str]) -> None:
    """Each real target is well-formed; its calls come back as `json` reads them and its bytes have known regions."""
    kinds = {"calls": 0, "response": 0}
    for text in rlla_targets:
        parsed = parse(text)
        assert parsed.fields in {("think", "tool_call"), ("think", "response")}
        assert all(parsed.closed)
        assert not parsed.stray
        tail = text[text.index("</think>") + len("</think>\n") :]
        if parsed.calls is not None:
            lines = tail.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>").split("\n")
            assert [{"name": c.name, "parameters": c.parameters} for c in parsed.calls] == list(map(json.loads, lines))
            kinds["calls"] += 1
        else:
            assert parsed.response == tail.removeprefix("<response>").removesuffix("</response>")
            kinds["response"] += 1
        painted = np.repeat([s.region for s in parsed.spans], [s.stop - s.start for s in parsed.spans])
        assert np.array_equal(painted, expected_bytes(text))
    assert kinds == {"calls": 346, "response": 54}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_token_has_the_region_of_its_first_byte(
    name: str, rlla_targets: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(name)
    table = TokenBytes.from_tokenizer(tokenizer)
    stop = tokenizer.eos_token_id
    split_characters = 0
    for text in rlla_targets:
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = table.pieces(ids)
        assert b"".join(pieces) == text.encode()
        read = read_completion(torch.tensor([*ids, stop]), table, {stop})
        assert read.text == text
        assert read.parsed == parse(text)
        starts = np.cumsum([0, *map(len, pieces)])[:-1]
        empty = np.array([not piece for piece in pieces])  # the dummy space that a SentencePiece text begins with
        expected = np.where(empty, Region.FORMAT, expected_bytes(text)[starts])
        assert read.regions.tolist() == [*expected.tolist(), Region.FORMAT]
        split_characters += sum(_is_cut(piece) for piece in pieces)
    assert split_characters > 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_characters_split_over_tokens(name: str, request: pytest.FixtureRequest) -> None:
    """Cloud and runes are in no vocabulary: each character's tokens all lie in the field that it stands in."""
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(name)
    table = TokenBytes.from_tokenizer(tokenizer)
    text = "<think>🌧ᚠᛇ</think>\n<response>ᛒ🌧</response>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    read = read_completion(torch.tensor(ids), table, ())
    assert read.text == text
    pieces = table.pieces(ids)
    assert sum(map(_is_cut, pieces)) >= 8
    by_region: dict[int, bytes] = {}
    for piece, region in zip(pieces, read.regions.tolist(), strict=True):
        by_region[region] = by_region.get(region, b"") + piece
    assert by_region[Region.REASONING].startswith("🌧ᚠᛇ".encode())
    assert by_region[Region.RESPONSE].startswith("ᛒ🌧".encode())


def _is_cut(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False
