"""What the synthetic corpus is written from, read from `corpus.json`: API domains, words, wordings of long thoughts.

A domain's tools say how people ask for them and what they return. A phrasing is an imperative clause. `{parameter}` is
replaced by the value; a part in square brackets can be left out, which is how a request with a missing parameter is
made. The last phrasing of each tool is never used for training.

In a wording `(a|b)` is a choice that `thoughts.spin` makes, `{tool}` and the like are filled in. Most words are single
tokens of the tiny tokenizer, so that a choice of wording is an uncertain token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticTool:
    """A tool of a synthetic domain.

    Attributes:
        name: as in the prompt.
        description: one sentence.
        parameters: name to kind of value (see `source`).
        phrasings: imperative clauses that ask for it; the last is held out from training.
        returns: what it reports, name to kind of value.
        answer: how the assistant words the result.
        follow_up: how a user asks for it after an earlier call returned its first parameter, or None.
    """

    name: str
    description: str
    parameters: dict[str, str]
    phrasings: tuple[str, ...]
    returns: dict[str, str]
    answer: str
    follow_up: tuple[str, ...] = ()


def _tool(values: Mapping[str, Any]) -> SyntheticTool:
    kinds = {key: dict(item.split(":") for item in values[key].split()) for key in ("parameters", "returns")}
    lists = {key: tuple(values.get(key, ())) for key in ("phrasings", "follow_up")}
    return SyntheticTool(**{**values, **kinds, **lists})


def _domains(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[SyntheticTool, ...]]:
    return {name: tuple(map(_tool, tools)) for name, tools in groups.items()}


_CORPUS: dict[str, Any] = json.loads(Path(__file__).with_name("corpus.json").read_text(encoding="utf-8"))
TRAINING_DOMAINS = _domains(_CORPUS["training"])
UNSEEN_DOMAINS = _domains(_CORPUS["unseen"])
WORDINGS: Mapping[str, Any] = _CORPUS["wordings"]
"""Wordings by what they say: a list each, and for `places` a list by place."""
WORDS: Mapping[str, Any] = _CORPUS["dialogues"]
"""Words and sentences of dialogues by what they are for, and the share of each kind of dialogue."""
