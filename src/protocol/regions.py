"""Sampled ids and spans to the region of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.protocol.formats.known import REST
from src.protocol.output_format import Reading
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse, Region

PLAIN = Reading(REST)
"""The paper's format, with nothing of it in the prompt."""


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
    token_ids: Tensor, table: TokenBytes, stop_ids: Collection[int], reading: Reading = PLAIN
) -> DecodedCompletion:
    """Decode, parse and tag one completion, int64 [T]; see `read_completions`."""
    return read_completions([token_ids], table, stop_ids, [reading])[0]


def read_completions(
    token_ids: Sequence[Tensor], table: TokenBytes, stop_ids: Collection[int], readings: Sequence[Reading]
) -> list[DecodedCompletion]:
    """Decode, parse and tag completions, all at once. Never raises on what was sampled.

    Args:
        token_ids: int64 [T_i] each, sampled ids; the first stop token and what follows it are not text.
        table: the bytes of each token.
        stop_ids: end-of-turn tokens.
        readings: of each completion.
    """
    if not token_ids:
        return []
    lengths = list(map(len, token_ids))
    batch = table.decode_batch(torch.cat(list(token_ids)).cpu().numpy(), lengths, stop_ids)
    parsed = []
    for text, ended, reading in zip(batch.texts, batch.ended, readings, strict=True):
        read = reading.format.parse(text, reading.tools, reading.prefix.encode("utf-8", "surrogatepass"))
        parsed.append(read.cut() if read.native and not ended else read)
    regions = torch.from_numpy(tag_tokens(batch.sizes, parsed)).to(token_ids[0].device).split(lengths)
    texts = [r.prefix + text.decode("utf-8", "replace") for text, r in zip(batch.texts, readings, strict=True)]
    return list(map(DecodedCompletion, texts, parsed, regions))


def tag_tokens(sizes: NDArray[np.int32], parsed: Sequence[ParsedResponse]) -> NDArray[np.int64]:
    """Region of each token of responses laid end to end: that of its first byte.

    Spans are few and tokens many, so what is looked up is the first token behind each span. A token without bytes is
    FORMAT.

    >>> from src.protocol.formats.rest import parse
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
