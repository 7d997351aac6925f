"""What a config key may hold: a type hint reduced to plain types, which can be written down and read back."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig

_NAMES: Mapping[str, str] = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "null": "null",
    "path": "a path",
    "mapping": "keys and values",
    "list": "a list",
}
_KINDS: Mapping[Any, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    None: "null",
    type(None): "null",
    Path: "path",
    dict: "mapping",
    Mapping: "mapping",
    **dict.fromkeys((list, tuple, set, frozenset, Sequence, Iterable), "list"),
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The values that a key accepts.

    Attributes:
        kinds: plain types by name, in the order of the hint; None: anything, because the hint is no plain type and what
            it takes is for its own code to say.
        choices: values of a `Literal`.
    """

    kinds: tuple[str, ...] | None = None
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> Accepted:
        """What a type hint accepts.

        >>> Accepted.of(int | None), Accepted.of(Literal["a", "b"]), Accepted.of(Accepted | None).kinds
        (Accepted(kinds=('int', 'null'), choices=()), Accepted(kinds=(), choices=('a', 'b')), None)
        """
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is Literal:
            return cls((), inner)
        if origin not in (Union, types.UnionType):
            kind = _KINDS.get(origin or hint)
            return cls(None if kind is None else (kind,))
        kinds: list[str] = []
        choices: list[Any] = []
        for part in map(cls.of, inner):
            if part.kinds is None:
                return cls()
            kinds += part.kinds
            choices += part.choices
        return cls(tuple(dict.fromkeys(kinds)), tuple(choices))

    def or_null(self) -> Accepted:
        """The same and null, which a parameter with the default None takes whatever its hint says.

        >>> str(Accepted.of(int).or_null())
        'an integer or null'
        """
        return self if self.kinds is None else Accepted(tuple(dict.fromkeys((*self.kinds, "null"))), self.choices)

    def fits(self, value: Any) -> bool:
        """Whether a value, as OmegaConf gives it, is one of them. An object that Hydra makes (`_target_`) always is.

        >>> [Accepted.of(int).fits(value) for value in (3, 3.0, True, "3")]
        [True, False, False, False]
        >>> Accepted.of(int | None).fits(None), Accepted.of(Literal["constant", "cosine"]).fits("linear")
        (True, False)
        """
        if self.kinds is None or (isinstance(value, DictConfig) and "_target_" in value):
            return True
        chosen = any(value == choice and type(value) is type(choice) for choice in self.choices)
        return chosen or any(_is_a(kind, value) for kind in self.kinds)

    def __str__(self) -> str:
        """In words.

        >>> str(Accepted.of(int | None)), str(Accepted.of(Literal["constant", "cosine"]))
        ('an integer or null', "'constant' or 'cosine'")
        """
        return " or ".join([*map(repr, self.choices), *(_NAMES[kind] for kind in self.kinds or ())]) or "anything"


def _is_a(kind: str, value: Any) -> bool:
    match kind:
        case "null":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "mapping":
            return isinstance(value, DictConfig | dict)
        case "list":
            return isinstance(value, ListConfig | list | tuple)
        case _:
            return isinstance(value, str)
