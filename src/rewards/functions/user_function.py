"""A reward function of the user: found by its path, called by keyword, checked in what it returns."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from src.errors import ConfigError, Refusal, advice
from src.protocol.dialogue import Message, ToolCall, TurnExample

log = logging.getLogger(__name__)

_TRLS = ("trainer_state", "log_extra", "log_metric", "environments")
_HOW = "FILE.py:NAME, package.module.NAME, or {path: one of these, weight: 1.0}"


class RewardError(Refusal, ValueError):
    """A reward that is no finite number, which would make its whole group's advantages not finite."""


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function, its name in config and metrics, its path as the config says it, and its weight in the total."""

    name: str
    path: str
    weight: float
    function: Callable[..., Any]
    _missed: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def from_config(cls, name: str, entry: object) -> UserFunction:
        """The function of an entry of `reward.functions`; runs the module or file that it is from.

        Raises:
            ConfigError: there is no such function, or the entry is none.
        """
        given = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping) or not {"path"} <= set(given) <= {"path", "weight"}:
            raise ConfigError(f"reward.functions.{name}: expected {_HOW}, found {entry!r}.")
        path, weight = str(given["path"]), given.get("weight", 1.0)
        if not is_finite_number(weight):
            raise ConfigError(f"reward.functions.{name}: expected a finite number as weight, found {weight!r}.")
        function = find(f"reward.functions.{name}", path, _HOW)
        for one in inspect.signature(function).parameters.values():
            if one.name in _TRLS and one.default is one.empty:
                raise ConfigError(
                    f"reward.functions.{name}: {path} takes '{one.name}', which TRL's trainer gives and nothing stands "
                    "for here. Take rollout_step or progress in its place, or give it a default."
                )
        return cls(name, path, float(weight), function)

    @property
    def is_async(self) -> bool:
        """Whether it returns a coroutine; so may an object with an async `__call__`."""
        return any(map(inspect.iscoroutinefunction, (self.function, type(self.function).__call__)))

    def __call__(self, known: Mapping[str, Any]) -> Any:
        """What the function returns, called with those of the known arguments that it takes."""
        with self._named():
            return self.function(**self._taken(known))

    async def awaited(self, known: Mapping[str, Any]) -> Any:
        """The same of an async function."""
        with self._named():
            return await self.function(**self._taken(known))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What the user's code raises passes, with a note."""
        try:
            yield
        except Exception as error:
            error.add_note(f"Raised by reward.functions.{self.name} ({self.path}).")
            raise

    def _taken(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by the function's signature; a column that no example of the batch has is None for each."""
        parameters = inspect.signature(self.function).parameters.values()
        named = {
            one.name: one.default for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        every = any(one.kind is one.VAR_KEYWORD for one in parameters)
        missing = {key for key, default in named.items() if key not in known and default is inspect.Parameter.empty}
        for key in sorted(missing - self._missed):
            self._missed.add(key)
            log.warning(
                "reward.functions.%s: no example of this batch has the column '%s': it is None. Known here: %s.",
                *(self.name, key, ", ".join(sorted(known))),
            )
        taken = {key: _copied(key, value) for key, value in known.items() if every or key in named}
        return taken | {key: [None] * len(known["completions"]) for key in missing}

    def checked(self, returned: Any, examples: Sequence[TurnExample]) -> list[float | None]:
        """What the function returned, as a score for each example's completion; None where it abstains.

        Raises:
            RewardError: something else than a finite number or None for each.
        """
        key, count = f"reward.functions.{self.name}", len(examples)
        values = returned.tolist() if hasattr(returned, "tolist") else returned  # of NumPy or PyTorch
        if not isinstance(values, list | tuple) or len(values) != count:
            found = f"{len(values)}" if isinstance(values, list | tuple) else f"{values!r:.200}"
            raise RewardError(
                f"{key}: expected a list of {count} rewards, one for each completion, found {found}. Let {self.path} "
                "return them in the order of completions, and None for one that it does not score."
            )
        scores = [value.item() if hasattr(value, "item") else value for value in values]
        for index, (value, example) in enumerate(zip(scores, examples, strict=True)):
            if value is not None and not isinstance(value, bool) and not is_finite_number(value):
                raise RewardError(
                    f"{key}: expected a finite number or None for each completion, found {value!r:.200} for completion "
                    f"{index}, of example '{example.source}/{example.id}'. Mend {self.path}."
                )
        return [None if value is None else float(value) for value in scores]


def _copied(key: str, value: Any) -> Any:
    """An argument that a function may change, and none after it sees the change."""
    return [list(ids) for ids in value] if key == "completion_ids" else deepcopy(value)


def is_finite_number(value: object) -> bool:
    """Whether it is a number, which true and false are not.

    >>> [is_finite_number(value) for value in (1, 0.5, True, "1", float("nan"))]
    [True, True, False, False, False]
    """
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def find(key: str, path: str, how: str = "FILE.py:NAME or package.module.NAME") -> Callable[..., Any]:
    """The function or class that a path names.

    Args:
        key: of the config, for errors.
        path: `FILE.py:NAME`, `package.module:NAME` or `package.module.NAME`.
        how: what the key may hold, for errors.

    Raises:
        ConfigError: there is none, or its file cannot be run.
    """
    where, _, attribute = path.rpartition(":" if ":" in path else ".")
    if not where or not attribute:
        raise ConfigError(f"{key}: expected {how}, found '{path}'.")
    if ":" not in path and attribute == "py":
        raise ConfigError(f"{key}: expected {how}, found '{path}': which function of the file?")
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise ConfigError(f"{key}: no file '{where}' in {Path.cwd()}. Give {how}.")
    try:
        module = _of_file(Path(where).resolve()) if is_file else importlib.import_module(where)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: '{where}' cannot be imported ({reason}). Mend it, or give {how}.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ConfigError(f"{key}: '{where}' has no function '{attribute}'. {advice(attribute, own)}")
    return function


@cache
def _of_file(file: Path) -> ModuleType:
    """The module of a file, run once a process; like a script it finds the modules beside it."""
    spec = importlib.util.spec_from_file_location(str(file), file)
    assert spec is not None and spec.loader is not None
    sys.path += [str(file.parent)] * (str(file.parent) not in sys.path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conversation(example: TurnExample) -> list[dict[str, Any]]:
    """The messages before the target as chat messages: system, user, assistant and tool.

    >>> from src.protocol.dialogue import Message
    >>> seen = Message("observation", "5 °C", name="sky", call_id="c1")
    >>> conversation(TurnExample((), (Message("user", "Oslo?"), seen), Message("assistant", "Cold."), "doc", "0"))[1]
    {'role': 'tool', 'content': '5 °C', 'name': 'sky', 'tool_call_id': 'c1'}
    """
    if (prompt := example.prompt) is not None:
        return [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    return chat_messages(example.history)


def chat_messages(history: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI has them: system, user, assistant and tool."""
    messages = []
    for message in history:
        role = "tool" if message.role == "observation" else message.role
        about = {"name": message.name, "tool_call_id": message.call_id}
        plain = {"role": role, "content": message.text} | {key: value for key, value in about.items() if value}
        messages.append(assistant(message.text, message.calls) if role == "assistant" else plain)
    return messages


def assistant(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An assistant's message; `tool_calls` where there are any."""
    tool_calls = [call.openai() for call in calls]
    return {"role": "assistant", "content": text, **({"tool_calls": tool_calls} if tool_calls else {})}
