"""The bytes that each token id stands for, read off a tokenizer once.

Sampled ids are never tokenised again: their bytes, laid end to end, are the response, and a byte position is all that
is needed to find a token's region.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

LeadingSpace = Literal["keep", "drop_one", "drop_all"]
"""What a tokenizer's decoder does with the spaces that begin a text: nothing, drops one (SentencePiece's dummy prefix),
or drops those of the first token."""

_METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = ' <think> {"a": [1, "\u00e9 \u6f22 \U0001f327"]}\n\n  b </think>'


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """Token id to bytes.

    Attributes:
        tokens: bytes of token 0, 1, …; empty for an id that no token has.
        leading_space: how the decoder treats the spaces that begin a text.
        lengths: int64 [len(tokens) + 1], bytes of each token; the last entry, 0, stands for every id beyond the table
            (models pad their embeddings).
    """

    tokens: tuple[bytes, ...]
    leading_space: LeadingSpace = "keep"
    lengths: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", torch.tensor([*map(len, self.tokens), 0], dtype=torch.int64))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
        """Build the table of a fast tokenizer: byte-level BPE, or SentencePiece with or without byte fallback.

        Added tokens (special ones, and Qwen3's `<think>` and `<tool_call>`) stand for their text. The table is checked
        against the tokenizer's own `decode` on a probe with brackets, runs of spaces and characters of 1 to 4 bytes.

        Raises:
            ValueError: the tokenizer's tokens are not byte strings (WordPiece, a slow tokenizer, …).
        """
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        steps = [] if decoder is None else _decoder_steps(json.loads(decoder.__getstate__()))
        kinds = {step["type"] for step in steps}
        if "ByteLevel" in kinds:
            to_bytes, leading = _byte_level_bytes, "keep"
        elif "Metaspace" in kinds or any(_replaces_metaspace(step) for step in steps):
            to_bytes, leading = _sentencepiece_bytes, _leading_space(steps)
        else:
            raise ValueError(
                f"tokenizer {name}: expected a fast tokenizer with a byte-level or SentencePiece decoder, found decoder "
                f"steps {sorted(kinds) or 'none'}. Its tokens cannot be mapped to bytes: use the model's fast tokenizer."
            )
        added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        vocabulary = tokenizer.get_vocab()
        tokens = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = to_bytes(token)
        for index, content in added.items():
            tokens[index] = content.encode("utf-8", "surrogatepass")
        table = cls(tuple(tokens), leading)  # type: ignore[arg-type]
        table._check(tokenizer)
        return table

    def decode(self, token_ids: Tensor | Sequence[int]) -> bytes:
        """The bytes of `token_ids` (int64 [T]), those of the tokenizer's `decode` for ids that form valid UTF-8.

        Special tokens are kept, and spaces before punctuation are not cleaned up.
        """
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        size = len(self.tokens)
        pieces = [self.tokens[index] if 0 <= index < size else b"" for index in ids]
        return b"".join(pieces)[self._dropped(pieces[0] if pieces else b"") :]

    def byte_starts(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where each token begins in `decode(token_ids)`, and how many bytes of it are there: two int64 [T].

        >>> table = TokenBytes((b" a", b"bc"), leading_space="drop_one")
        >>> table.byte_starts(torch.tensor([0, 1, 1]))
        (tensor([0, 1, 3]), tensor([1, 2, 2]))
        """
        size = len(self.tokens)
        ids = token_ids.to(device="cpu", dtype=torch.int64)
        lengths = self.lengths[torch.where((ids < 0) | (ids > size), size, ids)]
        if len(lengths) and self.leading_space != "keep":
            first = int(ids[0])
            lengths[0] -= self._dropped(self.tokens[first] if 0 <= first < size else b"")
        return lengths.cumsum(0) - lengths, lengths

    def _dropped(self, first: bytes) -> int:
        """Bytes that the decoder drops from the first token of a text."""
        if self.leading_space == "keep":
            return 0
        spaces = len(first) - len(first.lstrip(b" "))
        return min(spaces, 1) if self.leading_space == "drop_one" else spaces

    def _check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = tokenizer.encode(_PROBE, add_special_tokens=False)
        expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found = self.decode(ids).decode("utf-8", "replace")
        if found != expected:
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__}: its tokens do not map to bytes: a probe decodes to {expected!r}, "
                f"the bytes of its tokens read {found!r}. Only plain byte-level and SentencePiece decoders are supported."
            )


def _decoder_steps(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoder_steps(part)]
    return [decoder]


def _replaces_metaspace(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Replace" and step["pattern"].get("String") == _METASPACE


def _leading_space(steps: Sequence[Mapping[str, Any]]) -> LeadingSpace:
    if any(step["type"] == "Strip" and step["content"] == " " and step["start"] == 1 for step in steps):
        return "drop_one"
    if any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps):
        return "drop_all"
    return "keep"


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet, the character that stands for each byte, read backwards.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100, U+0101, … in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _byte_level_bytes(token: str) -> bytes:
    alphabet = _byte_of_character()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # outside of the alphabet: the decoder takes the token literally
        return token.encode("utf-8", "surrogatepass")


def _sentencepiece_bytes(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_METASPACE, " ").encode("utf-8", "surrogatepass")
