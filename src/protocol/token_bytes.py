"""The bytes that each token id stands for, read off a tokenizer once.

Sampled ids are never tokenised again: their bytes, laid end to end, are the response, and a byte position is all that
is needed to find a token's region.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

LeadingSpace = Literal["keep", "drop_one", "drop_all"]
"""What a tokenizer's decoder does with the spaces that begin a text: nothing, drops one (SentencePiece's dummy prefix),
or drops those of the first token."""

_METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = ' <think> {"a": [1, "\u00e9 \u6f22 \U0001f327"]}\n\n  b </think>'


class DecodedBatch(NamedTuple):
    """The bytes of a batch of completions.

    Attributes:
        texts: of each completion, up to its first stop token.
        sizes: int32 [N], bytes that each token adds to its text; 0 for stop tokens and what follows them.
        ended: whether each completion has a stop token.
    """

    texts: list[bytes]
    sizes: NDArray[np.int32]
    ended: list[bool]


class _Arrays(NamedTuple):
    """A table as arrays, with one entry more, of no bytes, for ids that no token has."""

    data: NDArray[np.uint8]  # all tokens end to end
    starts: NDArray[np.int32]  # where in it each begins
    sizes: NDArray[np.int32]
    dropped: NDArray[np.int32]  # bytes that each loses where it begins a text


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """Token id to bytes.

    Attributes:
        tokens: bytes of token 0, 1, …; empty for an id that no token has.
        leading_space: how the decoder treats the spaces that begin a text.
    """

    tokens: tuple[bytes, ...]
    leading_space: LeadingSpace = "keep"
    _arrays: _Arrays = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_arrays", _as_arrays(self.tokens, self.leading_space))

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
                f"tokenizer {name}: expected a fast tokenizer with a byte-level or SentencePiece decoder, found "
                f"decoder steps {sorted(kinds) or 'none'}. Its tokens cannot be mapped to bytes: use the model's fast "
                "tokenizer."
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
        return b"".join(self.pieces(token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token adds to a text that begins with the first; none for ids beyond the table.

        >>> TokenBytes((b" a", b"bc"), leading_space="drop_one").pieces([0, 1, 0, 7])
        [b'a', b'bc', b' a', b'']
        """
        size = len(self.tokens)
        if token_ids and (max(token_ids) >= size or min(token_ids) < 0):  # models pad their embeddings
            pieces = [self.tokens[index] if 0 <= index < size else b"" for index in token_ids]
        else:
            pieces = list(map(self.tokens.__getitem__, token_ids))
        if pieces and self.leading_space != "keep" and pieces[0].startswith(b" "):
            pieces[0] = pieces[0][1:] if self.leading_space == "drop_one" else pieces[0].lstrip(b" ")
        return pieces

    def decode_batch(
        self, token_ids: NDArray[np.int64], lengths: Sequence[int], stop_ids: Collection[int]
    ) -> DecodedBatch:
        """The bytes of many completions at once: of each what `pieces` has of its ids before the first stop token.

        >>> table = TokenBytes((b" a", b"bc", b"<eos>"), leading_space="drop_one")
        >>> batch = table.decode_batch(np.array([0, 1, 2, 0, 7, 0, 1]), lengths=[4, 0, 3], stop_ids=(2,))
        >>> batch.texts, batch.sizes.tolist()
        ([b'abc', b'', b' abc'], [1, 2, 0, 0, 0, 2, 2])

        Args:
            token_ids: int64 [N], ids of completion 0, then 1, …
            lengths: tokens of each completion, summing to N.
            stop_ids: end-of-turn tokens.
        """
        arrays, unknown = self._arrays, len(self.tokens)
        stops = np.cumsum(lengths, dtype=np.int64)  # of completions, in tokens
        starts = stops - lengths
        known = token_ids
        if len(token_ids) and (token_ids.max() >= unknown or token_ids.min() < 0):  # models pad their embeddings
            known = np.where((token_ids >= 0) & (token_ids < unknown), token_ids, unknown)
        sizes, begins = arrays.sizes[known], arrays.starts[known]
        if self.leading_space != "keep":
            first = starts[starts < stops]
            dropped = arrays.dropped[known[first]]
            sizes[first] -= dropped
            begins[first] += dropped
        ended = _blank_after_stops(sizes, token_ids, starts, stops, stop_ids)
        total = int(sizes.sum(dtype=np.int64))
        width: type[np.int32 | np.int64] = np.int32 if total < 2**31 else np.int64  # the narrow one takes less time
        ends: NDArray[np.int32 | np.int64] = np.cumsum(sizes, dtype=width)
        index = np.repeat(begins - (ends - sizes), sizes)
        index += np.arange(total, dtype=index.dtype)
        data = arrays.data.take(index).tobytes()
        borders = np.concatenate([[0], ends])[stops].tolist()
        return DecodedBatch([data[a:b] for a, b in zip([0, *borders], borders, strict=False)], sizes, ended)

    def _check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = tokenizer.encode(_PROBE, add_special_tokens=False)
        expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found = self.decode(ids).decode("utf-8", "replace")
        if found != expected:
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__}: expected tokens whose bytes read as it decodes a probe, "
                f"{expected!r}, found {found!r}. Only plain byte-level and SentencePiece decoders are supported."
            )


def _as_arrays(tokens: Sequence[bytes], leading_space: LeadingSpace) -> _Arrays:
    sizes = np.fromiter(map(len, (*tokens, b"")), np.int32, count=len(tokens) + 1)
    spaces = np.fromiter((len(token) - len(token.lstrip(b" ")) for token in (*tokens, b"")), np.int32)
    dropped = {"keep": 0 * spaces, "drop_one": np.minimum(spaces, 1), "drop_all": spaces}[leading_space]
    starts = np.cumsum(sizes, dtype=np.int32) - sizes
    return _Arrays(np.frombuffer(b"".join(tokens), np.uint8), starts, sizes, dropped)


def _blank_after_stops(
    sizes: NDArray[np.int32],
    token_ids: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    stop_ids: Collection[int],
) -> list[bool]:
    """Set to 0 the sizes of the first stop token of each completion `[start, stop)` and of the tokens after it.

    Returns:
        Whether each completion has a stop token.
    """
    is_stop = np.zeros(len(token_ids), dtype=bool)
    for stop in stop_ids:
        is_stop |= token_ids == stop
    found = np.flatnonzero(is_stop)
    if not len(found):
        return [False] * len(stops)
    first = np.minimum(np.append(found, len(token_ids))[np.searchsorted(found, starts)], stops)
    for begin, end in zip(first.tolist(), stops.tolist(), strict=True):
        sizes[begin:end] = 0
    return (first < stops).tolist()


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
