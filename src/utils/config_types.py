"""Whether a config's value fits the type hint of what it is for. Knows plain types; what it does not know, fits."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig

_NAMES: Mapping[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}
_LISTS = (list, tuple, set, frozenset, Sequence, Iterable)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, as OmegaConf gives it, may stand where `hint` is written.

    An object that Hydra makes (a config with `_target_`) fits everything, and so does any value a hint that is no plain
    type: what it takes is for its own code to say.

    >>> fits(3, int), fits(3, float), fits(True, int), fits("3", int)
    (True, True, False, False)
    >>> fits(None, int | None), fits("linear", Literal["constant", "cosine"])
    (True, False)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, DictConfig) and "_target_" in value:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is Path:
        return isinstance(value, str)
    if (origin or hint) in (dict, Mapping):
        return isinstance(value, DictConfig | dict)
    if (origin or hint) in _LISTS:
        return isinstance(value, ListConfig | list | tuple)
    return True


def describe(hint: Any) -> str:
    """What a hint expects, in words.

    >>> describe(int | None), describe(Literal["constant", "cosine"])
    ('an integer or null', "'constant' or 'cosine'")
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, inner)))
    if (origin or hint) in (dict, Mapping):
        return "keys and values"
    if (origin or hint) in _LISTS:
        return "a list"
    if hint is Path:
        return "a path"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
