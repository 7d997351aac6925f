"""Regions of sampled tokens as the published code finds them: for comparison with it, not a better tagger.

The published code reads the decoded text with its own patterns, tokenises that text again, and takes the positions of
the new tokens for those of the sampled ones. `regions.py` is what everything else uses; this file shares nothing with
it, and knows the tags by itself, so that neither can bend the other. What differs:

- The last token of a span of two tokens or more is lost; a token that straddles the beginning of a span is skipped.
- Of a tool_call block only the first name and the first parameters object count; of tags only those of closed pairs.
  The rest of a call's JSON, white space, the stop token and malformed text have weight 0.
- A template's prefix is not read: where the prompt ends with `<think>`, the thought is not found.
- Where the new tokens are not the sampled ones, regions move to other tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.errors import ConfigError
from src.protocol.types import Region

_PAIRS = (("think", Region.REASONING), ("response", Region.RESPONSE), ("tool_call", None))
_BLOCK_OPENING = re.compile(r"<tool_?call>")
_BLOCK_CLOSING = re.compile(r"</tool_?call>")
_NAME = re.compile(r'"name"\s*+:\s*+"([^"]++)"')
_PARAMETERS_KEY = re.compile(r'"(?:arguments|parameters)"\s*+:')
# A whole string, a brace, or the quote of a string that never ends.
_LEXEME = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}"]', re.DOTALL)

_LIGHTEST_FIRST = (Region.RESPONSE, Region.REASONING, Region.TOOL_PARAMETERS, Region.FORMAT, Region.TOOL_NAME)


def published_regions(token_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Region of each sampled token, by the published code's rules. Never raises on what was sampled.

    Where spans overlap the published code keeps the larger weight: name 1.2, format 1, parameters and reasoning 0.6
    growing by 0.002 a step. The order here is therefore name, format, parameters, reasoning; parameters pass format at
    step 200, and from there on a token in both (a tag inside a parameter) would be TOOL_PARAMETERS to the published
    code. What has weight 0 there is RESPONSE inside a closed response and OTHER elsewhere: give both factor 0.

    A span that begins in or after the last token, or reaches beyond the longest response, is an error in the
    published code; here it has no tokens, or those that exist.

    Example, tokens `<think>` `Hm` `m` `.` `</` `think` `>`: the opening tag is one token, FORMAT. The thought has three
    and loses `.`, which is OTHER; the closing tag has three and loses `>`.

    Args:
        token_ids: int64 [N], sampled ids up to and with the stop token, without a template's prefix.
        tokenizer: a fast one, the one that the policy samples with. It decodes with special tokens kept.

    Returns:
        int64 [N] on the device of `token_ids`.

    Raises:
        ValueError: the tokenizer cannot say where in the text its tokens are.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "algorithm.regions: published needs a fast tokenizer, which gives the offsets of its tokens; found "
            f"{type(tokenizer).__name__}. Use the model's fast tokenizer, or set algorithm.regions: sampled."
        )
    text = str(tokenizer.decode(token_ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"]
    spans: dict[Region, list[tuple[int, int]]] = {region: [] for region in _LIGHTEST_FIRST}
    for start, stop, region in _character_spans(text):
        spans[region].append((start, stop))
    regions = np.full(len(token_ids), Region.OTHER, dtype=np.int64)
    for region in _LIGHTEST_FIRST:
        for first, last in _token_spans(offsets, spans[region]):
            regions[first:last] = region
    return torch.from_numpy(regions).to(token_ids.device)


def _token_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Tokens `[first, last)` of each span of characters, int64 [S, 2], by the published rule.

    `first` is the first token that begins at the span's beginning or later, `last` the first token that ends at its
    end or later, but at least one token is taken. A span at or after whose beginning no token begins is left out.

    Tokens `ab` `c` `de` `f`: characters [2, 6) are tokens 1 to 3 and lose the last; [1, 3) begins inside token 0, so
    that its only token is `c`; no token begins at 6 or later.

    >>> _token_spans([(0, 2), (2, 3), (3, 5), (5, 6)], [(2, 6), (1, 3), (6, 7)]).tolist()
    [[1, 3], [1, 2]]
    """
    starts, stops = np.maximum.accumulate(np.array(offsets, dtype=np.int64).reshape(-1, 2), axis=0).T
    wanted = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(starts, wanted[:, 0])
    last = np.maximum(first + 1, np.searchsorted(stops, wanted[:, 1]))
    return np.stack([first, last], axis=1)[first < len(starts)]


def _character_spans(text: str) -> Iterator[tuple[int, int, Region]]:
    """The spans that carry a weight, and the contents of responses: beginning, end, region. They may overlap."""
    for name, content in _PAIRS:
        opening, closing = f"<{name}>", f"</{name}>"
        start = text.find(opening)
        while start >= 0 and (stop := text.find(closing, start + len(opening))) >= 0:
            yield start, start + len(opening), Region.FORMAT
            if content is not None:
                yield start + len(opening), stop, content
            yield stop, stop + len(closing), Region.FORMAT
            start = text.find(opening, stop + len(closing))
    start = 0
    while (block := _BLOCK_OPENING.search(text, start)) and (end := _BLOCK_CLOSING.search(text, block.end())):
        yield from _call_spans(text, block.end(), end.start())
        start = end.end()


def _call_spans(text: str, start: int, stop: int) -> Iterator[tuple[int, int, Region]]:
    """The first name and the first parameters object of the block `[start, stop)`, wherever in it they stand."""
    if name := _NAME.search(text, start, stop):
        yield *name.span(1), Region.TOOL_NAME
    if key := _PARAMETERS_KEY.search(text, start, stop):
        opening = text.find("{", key.end(), stop)
        end = _object_end(text, opening, stop) if opening >= 0 else None
        if end is not None:
            yield opening, end, Region.TOOL_PARAMETERS


def _object_end(text: str, opening: int, stop: int) -> int | None:
    """Where the object that opens at `opening` ends, None if it is not closed before `stop`.

    >>> _object_end('{"a": {"b": "}"}}, {}', 0, 21)
    17
    """
    depth = 0
    for lexeme in _LEXEME.finditer(text, opening, stop):
        if lexeme[0] == '"':
            return None
        depth += {"{": 1, "}": -1}.get(lexeme[0], 0)
        if depth == 0:
            return lexeme.end()
    return None
