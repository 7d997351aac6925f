"""Token id to bytes for every family of tokenizers."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from src.protocol.token_bytes import TokenBytes

FAMILIES = ("smollm2", "qwen_like", "mistral", "byte_fallback")
TEXTS = (
    "plain text",
    " one space first",
    "   three spaces first",
    "a\n\n\tb   c\r\n",
    "naïve 漢字 🌧️ \u2028 \x00 end ",
    '<think> "</think>\n<tool_call>{"a": "\\u00e9"}',
    "",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_tokenizers_own_decode(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(family)
    table = TokenBytes.from_tokenizer(tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert table.decode(ids).decode() == decoded
        assert table.decode(torch.tensor(ids, dtype=torch.int64)) == table.decode(ids)


@pytest.mark.parametrize("family", ("qwen_like", "smollm2"))
def test_byte_level_tables_decode_any_ids(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(family)
    table = TokenBytes.from_tokenizer(tokenizer)
    if family == "qwen_like":  # SmolLM2 left out the bytes that its training text lacked
        assert {bytes([byte]) for byte in range(256)} <= set(table.tokens)
    # Random ids are seldom valid UTF-8; where they are not, both read U+FFFD.
    for ids in torch.randint(len(table.tokens), (50, 30), generator=torch.Generator().manual_seed(0)).tolist():
        assert table.decode(ids).decode("utf-8", "replace") == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_added_tokens_are_their_text(qwen_like: PreTrainedTokenizerBase) -> None:
    table = TokenBytes.from_tokenizer(qwen_like)
    for tag in ("<think>", "</tool_call>", "<|im_end|>"):
        (index,) = qwen_like.encode(tag, add_special_tokens=False)
        assert table.tokens[index] == tag.encode()


def test_sentencepiece_pieces(mistral: PreTrainedTokenizerBase) -> None:
    table = TokenBytes.from_tokenizer(mistral)
    vocabulary = mistral.get_vocab()
    assert table.leading_space == "drop_one"
    assert table.tokens[vocabulary["<0x0A>"]] == b"\n"
    assert table.tokens[vocabulary["<0xE6>"]] == b"\xe6"
    assert table.tokens[vocabulary["\u2581think"]] == b" think"
    # The dummy space is dropped once, at the start of the text alone.
    think = vocabulary["\u2581think"]
    assert table.decode([think, think]) == b"think think"


def test_ids_beyond_the_table_have_no_bytes() -> None:
    table = TokenBytes((b"a", b"", b"bc"))
    assert table.decode([0, 3, 2, 10**6]) == b"abc"
    assert table.decode(torch.tensor([], dtype=torch.int64)) == b""


def test_metaspace_decoder_drops_all_spaces_of_the_first_token() -> None:
    vocabulary = {"\u2581": 0, "\u2581\u2581a": 1, "b": 2, "<unk>": 3}
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=3))
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    table = TokenBytes(tuple(p.replace("\u2581", " ").encode() for p in vocabulary), leading_space="drop_all")
    for ids in ([1, 2], [1, 1], [0, 1], [2, 1]):
        assert table.decode(ids).decode() == backend.decode(ids)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder()])
def test_tokens_that_are_not_bytes_are_an_error(decoder: decoders.Decoder | None) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ValueError, match="cannot be mapped to bytes"):
        TokenBytes.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_decoder_that_does_more_than_join_bytes_is_an_error() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "\u0120": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.normalizer = normalizers.Lowercase()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b")])
    with pytest.raises(ValueError, match="probe"):
        TokenBytes.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
