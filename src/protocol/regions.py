"""Sampled ids and spans to the region of each token."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from src.protocol.parsing import parse_bytes
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse, Region

__all__ = ["DecodedCompletion", "TokenBytes", "read_completion", "token_regions"]


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
    sampled = table.decode(token_ids[: _text_tokens(token_ids, stop_ids)])
    parsed = parse_bytes(sampled, prefix=prefix.encode("utf-8", "surrogatepass"))
    regions = token_regions(token_ids, parsed, table, stop_ids)
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
    count = _text_tokens(token_ids, stop_ids)
    starts, lengths = table.byte_starts(token_ids[:count])
    size = int(lengths.sum())
    if size != parsed.size:
        raise ValueError(
            f"token_regions: expected a response of {size} bytes, the tokens' own, found one of {parsed.size}. "
            "Parse table.decode(token_ids) without the stop token, or call read_completion."
        )
    regions = torch.full((len(token_ids),), int(Region.FORMAT), dtype=torch.int64)
    if parsed.spans:
        stops = torch.tensor([span.stop for span in parsed.spans])
        values = torch.tensor([*(int(span.region) for span in parsed.spans), int(Region.FORMAT)])
        found = values[torch.searchsorted(stops, starts, right=True)]
        regions[:count] = torch.where(lengths > 0, found, int(Region.FORMAT))
    return regions.to(token_ids.device)


def _text_tokens(token_ids: Tensor, stop_ids: Collection[int]) -> int:
    """How many tokens come before the first stop token."""
    if not stop_ids:
        return len(token_ids)
    stops = torch.isin(token_ids, torch.tensor(list(stop_ids), device=token_ids.device)).nonzero()
    return int(stops[0]) if len(stops) else len(token_ids)
