"""What a config's target takes: its keyword parameters and the plain types of each, remembered between starts.

Type hints are reduced to plain types, which can be written down and read back. Reading a signature imports what the
target's module imports, PyTorch as a rule: seconds that a misspelt key need not wait for.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
import sysconfig
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig

from src.config.result_cache import INSTALLED, SOURCES, ResultCache

_PYTHON = Path(sysconfig.get_path("stdlib")).resolve()
_KINDS: Mapping[str, tuple[str, tuple[Any, ...], tuple[type, ...]]] = {
    "int": ("an integer", (int,), (int,)),
    "float": ("a number", (float,), (int, float)),
    "bool": ("true or false", (bool,), (bool,)),
    "str": ("a text", (str,), (str,)),
    "null": ("null", (None, type(None)), (type(None),)),
    "path": ("a path", (Path,), (str,)),
    "mapping": ("keys and values", (dict, Mapping), (DictConfig, dict)),
    "list": ("a list", (list, tuple, set, frozenset, Sequence, Iterable), (ListConfig, list, tuple)),
}
"""Plain types by name: in words, the hints that mean it, and the types of its values in a config."""
_KIND_OF = {hint: kind for kind, (_, hints, _) in _KINDS.items() for hint in hints}


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
            kind = _KIND_OF.get(origin or hint)
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
        return " or ".join([*map(repr, self.choices), *(_KINDS[kind][0] for kind in self.kinds or ())]) or "anything"


def _is_a(kind: str, value: Any) -> bool:
    return isinstance(value, _KINDS[kind][2]) and (kind == "bool" or not isinstance(value, bool))


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameters of a class' constructor, or of a function.

    Attributes:
        parameters: keyword parameters with what each accepts.
        takes_others: whether it takes keywords besides.
    """

    parameters: dict[str, Accepted]
    takes_others: bool

    @classmethod
    def of(cls, target: Any) -> Signature:
        """Of a class or function. What a class of this project hands on with `**` goes to the next constructor."""
        found: dict[str, Accepted] = {}
        for function in _constructors(target):
            hints = type_hints(function)
            handed_on = False
            try:
                parameters = inspect.signature(function).parameters
            except ValueError:  # written in C, and says nothing of them
                return cls(found, True)
            for name, parameter in parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    handed_on = True
                elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
                    accepted = Accepted.of(hints.get(name, Any))
                    found.setdefault(name, accepted.or_null() if parameter.default is None else accepted)
            if not handed_on:
                return cls(found, False)
            if not str(getattr(function, "__module__", "")).startswith("src."):
                break  # another package's: it may take them anywhere
        return cls(found, True)


def signature_of(target: str, cache: ResultCache) -> Signature:
    """The signature of `package.module.Name`, imported only where the cache does not have it.

    Raises:
        ImportError, AttributeError, ValueError: there is nothing of that name.
    """
    kept = None if target.rpartition(".")[0] in sys.modules else cache.get(target)
    if kept is not None and all(_stamp(Path(file)) == stamp for file, stamp in kept["files"].items()):
        parameters = {
            name: Accepted(None if kinds is None else tuple(kinds), tuple(choices))
            for name, (kinds, choices) in kept["parameters"].items()
        }
        return Signature(parameters, kept["takes_others"])
    found = resolved(target)
    signature = Signature.of(found)
    files = _files(found)
    choices = [choice for accepted in signature.parameters.values() for choice in accepted.choices]
    if files is not None and all(isinstance(choice, str | int | None) for choice in choices):
        written = {name: [one.kinds, one.choices] for name, one in signature.parameters.items()}
        stamps = {str(file): _stamp(file) for file in files if not file.is_relative_to(SOURCES)}
        cache.put(target, {"parameters": written, "takes_others": signature.takes_others, "files": stamps})
    return signature


def resolved(target: str) -> Any:
    """What a dotted path names; `pkgutil` alone takes a module whose own imports fail for one that is not there."""
    module, _, name = target.rpartition(".")
    try:
        return pkgutil.resolve_name(f"{module}:{name}" if module else target)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        return pkgutil.resolve_name(target)  # a name within a class


def _constructors(target: Any) -> list[Any]:
    """A class' constructors in the order in which Python looks for them, or the function."""
    if not inspect.isclass(target):
        return [target]
    return [kind.__dict__["__init__"] for kind in target.__mro__ if "__init__" in kind.__dict__] or [target]


def type_hints(function: Any) -> Mapping[str, Any]:
    """Of a function's parameters by name; none of a function whose hints only a type checker can read."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def _files(target: Any) -> set[Path] | None:
    """Where it and its bases are from; None if one is neither of this project nor of Python or an installed package.

    The cache knows all sources of the project by their content, and other files by their size and time.
    """
    kinds = target.__mro__ if inspect.isclass(target) else (target,)
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in kinds if kind is not object]
    paths = {None if file is None else Path(file).resolve() for file in files}
    known = (SOURCES, _PYTHON, *INSTALLED)
    found = {path for path in paths if path is not None and any(map(path.is_relative_to, known))}
    return found if found == paths else None


def _stamp(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else []
