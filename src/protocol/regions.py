"""Sampled ids and spans to the region of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.protocol.parsing import parse_bytes
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse, Region

__all__ = ["DecodedCompletion", "TokenBytes", "read_completion", "token_regions"]


_PAINT = [bytes([region]) for region in Region]


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
    """Decode, parse and tag one completion. Never raises on what was sampled.

    Args:
        token_ids: int64 [T], sampled ids; the first stop token and what follows it are not text.
        table: the bytes of each token.
        stop_ids: end-of-turn tokens.
        prefix: the part of the response that the chat template wrote in the prompt, e.g. `<think>` and a line break.
    """
    pieces = _text_pieces(token_ids, table, stop_ids)
    sampled = b"".join(pieces)
    parsed = parse_bytes(sampled, prefix=prefix.encode("utf-8", "surrogatepass"))
    regions = _piece_regions(pieces, parsed, len(token_ids)).to(token_ids.device)
    return DecodedCompletion(prefix + sampled.decode("utf-8", "replace"), parsed, regions)


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
    return _piece_regions(_text_pieces(token_ids, table, stop_ids), parsed, len(token_ids)).to(token_ids.device)


def _text_pieces(token_ids: Tensor, table: TokenBytes, stop_ids: Collection[int]) -> list[bytes]:
    """The bytes of each token before the first stop token."""
    ids: list[int] = token_ids.tolist()
    for stop in stop_ids:
        if stop in ids:
            ids = ids[: ids.index(stop)]
    return table.pieces(ids)


def _piece_regions(pieces: Sequence[bytes], parsed: ParsedResponse, total: int) -> Tensor:
    """Region of each of `total` tokens, of which the first have these bytes and the others are not text: int64."""
    lengths = np.fromiter(map(len, pieces), np.int64, count=len(pieces))
    ends = lengths.cumsum()
    size = int(ends[-1]) if len(ends) else 0
    if size != parsed.size:
        raise ValueError(
            f"token_regions: expected a response of {size} bytes, the tokens' own, found one of {parsed.size}. "
            "Parse table.decode(token_ids) without the stop token, or call read_completion."
        )
    # One byte a region, and one more for tokens without bytes at the end of the text.
    painted = (
        b"".join([_PAINT[span.region] * (span.stop - span.start) for span in parsed.spans]) + _PAINT[Region.FORMAT]
    )
    regions = np.full(total, Region.FORMAT, dtype=np.int64)
    found = np.frombuffer(painted, np.uint8)[ends - lengths]
    regions[: len(pieces)] = np.where(lengths > 0, found, np.uint8(Region.FORMAT))
    return torch.from_numpy(regions)
