"""Which keyword parameters a config's target takes, remembered between starts.

Reading a signature imports what the target's module imports, PyTorch as a rule: seconds that a misspelt key need not
wait for.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
import sysconfig
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.utils.config_types import Accepted
from src.utils.result_cache import INSTALLED, SOURCES, ResultCache

_PYTHON = Path(sysconfig.get_path("stdlib")).resolve()


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
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    handed_on = True
                elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
                    found.setdefault(name, Accepted.of(hints.get(name, Any)))
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
    if kept is not None:
        parameters, takes_others = kept
        accepted = {
            name: Accepted(None if kinds is None else tuple(kinds), tuple(choices))
            for name, (kinds, choices) in parameters.items()
        }
        return Signature(accepted, takes_others)
    found = pkgutil.resolve_name(target)
    signature = Signature.of(found)
    if _is_versioned(found):
        written = {name: [one.kinds, one.choices] for name, one in signature.parameters.items()}
        cache.put(target, [written, signature.takes_others])
    return signature


def _constructors(target: Any) -> list[Any]:
    """A class' constructors in the order in which Python looks for them, or the function."""
    if not inspect.isclass(target):
        return [target]
    return [kind.__dict__["__init__"] for kind in target.__mro__ if "__init__" in kind.__dict__] or [target]


def type_hints(function: Any) -> Mapping[str, Any]:
    """Of a function's parameters by name; none of a function whose hints only a type checker can read."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _is_versioned(target: Any) -> bool:
    """Whether it and its bases are of this project, Python or installed packages, whose changes the cache notices."""
    kinds = target.__mro__ if inspect.isclass(target) else (target,)
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in kinds if kind is not object]
    paths = [None if file is None else Path(file).resolve() for file in files]
    known = (SOURCES, _PYTHON, *INSTALLED)
    return all(path is not None and any(map(path.is_relative_to, known)) for path in paths)
