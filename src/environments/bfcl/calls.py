"""A model's call as source text that is safe to evaluate. Pure: knows neither the scorer nor processes.

The official evaluator passes text to `eval()`. Here that text is rebuilt from parsed JSON, so that it can be nothing
but one call: a method that the entry's classes have, keywords that are identifiers, values that are literals. The
text is the one that the published decoders build, `name(key=<repr>, …)`; a call that is not allowed gets none.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Collection, Iterator

from src.protocol.dialogue import JsonValue, ToolCall

MAX_NAME, MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH, MAX_INTEGER_BITS = 256, 100_000, 10_000, 32, 1024
"""Bounds of a call: characters of its name and of all its strings, number of its values, how deep they are nested, and
size of an integer (that of the largest double). Gold calls stay below a hundredth of each but the depth (3)."""


REFUSED_CALL = "call_not_allowed()"
"""In place of a call that is not allowed: no method has this name, so evaluating it is an error and changes nothing."""


def as_python(call: ToolCall) -> str:
    """A call as Python source, as the published handler writes it. Safe to evaluate only through `call_string`.

    >>> as_python(ToolCall("cd", {"folder": "temp"}))
    "cd(folder='temp')"
    """
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.parameters.items())})"


def well_formed(text: str) -> str:
    r"""Text without lone surrogates, which JSON escapes can hold and no tokenizer takes: question marks instead.

    >>> well_formed("a\ud800")
    'a?'
    """
    return text.encode("utf-8", "replace").decode()


def bounded(call: ToolCall) -> ToolCall:
    """The call, or a nameless one in place of a call beyond the bounds: no tool has this name, and no gold answer."""
    return call if within_bounds(call) else ToolCall("", {})


def within_bounds(call: ToolCall) -> bool:
    """Whether a call is small enough to be judged at all. Takes time linear in its size, at any depth.

    >>> within_bounds(ToolCall("add", {"a": 1})), within_bounds(ToolCall("add", {"a": 1 << 2000}))
    (True, False)
    """
    characters = 0
    for count, (value, depth) in enumerate(_walk(call.parameters), start=1):
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            return False
        if characters > MAX_CHARACTERS or count > MAX_VALUES or depth > MAX_DEPTH:
            return False
    return len(call.name) <= MAX_NAME


def call_string(call: ToolCall, allowed: Collection[str]) -> str | None:
    r"""Python source of a call, or None where it is not allowed.

    Args:
        call: as the model wrote it.
        allowed: names of the methods that may be called.

    A value is written by `repr`, so a string stays one string literal whatever it holds. The official evaluator then
    puts an instance's name before every `method(` it finds, inside of strings too; that inserts letters, digits, `_`
    and `.` and drops spaces, none of which can end a literal.

    >>> call_string(ToolCall("echo", {"content": "'); exit() #", "n": True}), {"echo"})
    'echo(content="\'); exit() #", n=True)'
    >>> call_string(ToolCall("__import__", {}), {"echo"}) is None
    True
    """
    if call.name not in allowed or not _is_literal(call):
        return None
    return as_python(call)


def refusal(call: ToolCall, allowed: Collection[str]) -> str:
    """What the official evaluator answers to a call that it cannot evaluate, as the model reads it.

    >>> refusal(ToolCall("os.system", {"command": "ls"}), {"echo"})
    "Error during execution: name 'os' is not defined"
    """
    first = call.name.split(".")[0]
    if call.name not in allowed and first.isidentifier() and not keyword.iskeyword(first):
        return f"Error during execution: name {first!r} is not defined"
    return "Error during execution: invalid syntax (<string>, line 1)"


def _is_literal(call: ToolCall) -> bool:
    """Keywords are identifiers, values JSON literals that Python's `repr` writes as literals (`inf` is a name)."""
    if not within_bounds(call):
        return False
    if not all(key.isidentifier() and not keyword.iskeyword(key) for key in call.parameters):
        return False
    for value, _ in _walk(call.parameters):
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if not (value is None or type(value) in (bool, int, float, str, list, dict)):
            return False
    return True


def _walk(root: JsonValue) -> Iterator[tuple[JsonValue, int]]:
    """Every value and key under `root` with its depth; without recursion, which a hostile value would exhaust."""
    pending: list[tuple[Iterator[JsonValue], int]] = [(iter([*root, *root.values()]), 1)]
    while pending:
        values, depth = pending[-1]
        for value in values:
            yield value, depth
            if isinstance(value, dict):
                pending.append((iter([*value, *value.values()]), depth + 1))
                break
            if isinstance(value, list):
                pending.append((iter(value), depth + 1))
                break
        else:
            pending.pop()
