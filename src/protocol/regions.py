"""Sampled ids and spans to the region of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.protocol.parsing import parse_bytes
from src.protocol.token_bytes import DecodedBatch, TokenBytes
from src.protocol.types import ParsedResponse, Region

__all__ = ["DecodedCompletion", "TokenBytes", "read_completion", "read_completions", "tag_tokens", "token_regions"]


@dataclass(frozen=True, slots=True)
class DecodedCompletion:
    """A completion as the output protocol sees it.

    Attributes:
        text: the whole response for rewards and logs: the template's prefix, then the sampled text without the stop
            token; sampled bytes that are not UTF-8 read as U+FFFD.
        parsed: the response; its spans index the sampled bytes.
        regions: int64 [T], `Region` of each sampled token.
    """

    text: str
    parsed: ParsedResponse
    regions: Tensor


def read_completion(
    token_ids: Tensor, table: TokenBytes, stop_ids: Collection[int], prefix: str = ""
) -> DecodedCompletion:
    """Decode, parse and tag one completion, int64 [T]; see `read_completions`."""
    return read_completions([token_ids], table, stop_ids, [prefix])[0]


def read_completions(
    token_ids: Sequence[Tensor], table: TokenBytes, stop_ids: Collection[int], prefixes: Sequence[str]
) -> list[DecodedCompletion]:
    """Decode, parse and tag completions, all at once. Never raises on what was sampled.

    Args:
        token_ids: int64 [T_i] each, sampled ids; the first stop token and what follows it are not text.
        table: the bytes of each token.
        stop_ids: end-of-turn tokens.
        prefixes: for each completion the part of the response that the chat template wrote in the prompt, e.g.
            `<think>` and a line break.
    """
    if not token_ids:
        return []
    batch, lengths = _decode(token_ids, table, stop_ids)
    parsed = [
        parse_bytes(text, prefix=prefix.encode("utf-8", "surrogatepass"))
        for text, prefix in zip(batch.texts, prefixes, strict=True)
    ]
    regions = torch.from_numpy(tag_tokens(batch.sizes, parsed)).to(token_ids[0].device).split(lengths)
    texts = [prefix + text.decode("utf-8", "replace") for text, prefix in zip(batch.texts, prefixes, strict=True)]
    return list(map(DecodedCompletion, texts, parsed, regions))


def token_regions(token_ids: Tensor, parsed: ParsedResponse, table: TokenBytes, stop_ids: Collection[int]) -> Tensor:
    """Region of each sampled token: that of its first byte.

    A token that straddles a border belongs to the region that it begins in. The stop token, anything after it and
    tokens without bytes are FORMAT.

    Args:
        token_ids: int64 [T].
        parsed: what the bytes of these ids, up to the stop token, parsed to.
        table: the bytes of each token.
        stop_ids: end-of-turn tokens.

    Returns:
        int64 [T] on the device of `token_ids`.

    Raises:
        ValueError: `parsed` is about a text of another length than these ids'.

    >>> from src.protocol.parsing import parse
    >>> table = TokenBytes((b"<think>", b"Hm", b"m.</", b"think>", b"<eos>"))
    >>> ids = torch.tensor([0, 1, 2, 3, 4])
    >>> [Region(i).label for i in token_regions(ids, parse("<think>Hmm.</think>"), table, {4}).tolist()]
    ['format', 'reasoning', 'reasoning', 'format', 'format']
    """
    batch, _ = _decode([token_ids], table, stop_ids)
    size = len(batch.texts[0])
    if size != parsed.size:
        raise ValueError(
            f"token_regions: expected a response of {size} bytes, the tokens' own, found one of {parsed.size}. "
            "Parse table.decode(token_ids) without the stop token, or call read_completion."
        )
    return torch.from_numpy(tag_tokens(batch.sizes, [parsed])).to(token_ids.device)


def tag_tokens(sizes: NDArray[np.int32], parsed: Sequence[ParsedResponse]) -> NDArray[np.int64]:
    """Region of each token of responses laid end to end: that of its first byte.

    Spans are few and tokens many, so what is looked up is the first token behind each span. A token without bytes is
    FORMAT.

    >>> from src.protocol.parsing import parse
    >>> tag_tokens(np.array([7, 2, 4, 6, 0, 3], np.int32), [parse("<think>Hmm.</think>"), parse("Hm.")]).tolist()
    [0, 3, 3, 0, 0, 5]

    Args:
        sizes: int32 [N], bytes of each token.
        parsed: the responses, which have as many bytes together.

    Returns:
        int64 [N].
    """
    bases = np.cumsum([0, *(response.size for response in parsed)])[:-1]
    spans = np.fromiter(chain.from_iterable(chain.from_iterable([response.spans for response in parsed])), np.int64)
    _, stops, labels = spans.reshape(-1, 3).T
    stops = stops + np.repeat(bases, [len(response.spans) for response in parsed])
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    counts = np.diff(np.searchsorted(starts, stops), prepend=0)
    regions = np.full(len(sizes), Region.FORMAT, dtype=np.int64)
    regions[: counts.sum()] = np.repeat(labels, counts)
    regions[sizes == 0] = Region.FORMAT
    return regions


def _decode(
    token_ids: Sequence[Tensor], table: TokenBytes, stop_ids: Collection[int]
) -> tuple[DecodedBatch, list[int]]:
    """The bytes of completions, and how many tokens each has."""
    lengths = list(map(len, token_ids))
    return table.decode_batch(torch.cat(list(token_ids)).cpu().numpy(), lengths, stop_ids), lengths
