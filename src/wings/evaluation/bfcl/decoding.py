"""An answer's text to the calls that BFCL scores: the published handler's rule, made safe.

The paper's numbers come from ToolRL's handler (`decode_ast`, `decode_execute`), which is more forgiving than the
project's own `parse`: it reads what follows the LAST `<tool_call>`, up to a closing tag if there is one, and skips
lines that are not calls. Departures, each on text that no reader can agree on:

- `decode_execute` made a line without name the call `()` and one without parameters `name()`, while `decode_ast`
  skipped both; here both are skipped everywhere.
- A line whose name is no string ended the turn in `decode_execute` and was skipped in `decode_ast`; here it is skipped.
- A line nested deeper than `MAX_DEPTH` is skipped: near the interpreter's own limit it would depend on the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from src.protocol.dialogue import JsonValue, ToolCall

MAX_DEPTH = 100
"""Levels of arrays and objects that a call may have."""


def decode_calls(text: str) -> tuple[ToolCall, ...]:
    r"""The calls of an answer; none is an answer too.

    One call a line. Skipped: what is not JSON, lacks a key, or is named `none` (the prompt's way to say that no tool
    applies). Further keys do not matter; of a key given twice the last one counts; NaN and Infinity are read the way
    Python's json reads them. Parameters that are no object void all calls of the answer: both official checkers reject
    such an output as a whole.

    >>> decode_calls('<tool_call>\n{"name": "sky", "parameters": {"at": "Oslo"}}\nNo JSON.\n</tool_call>')
    (ToolCall(name='sky', parameters={'at': 'Oslo'}),)
    >>> decode_calls('<tool_call>\n{"name": "None", "parameters": {}}\n</tool_call>')
    ()
    """
    calls = []
    for name, parameters in _named(text):
        if _is_none(name):
            continue
        if not isinstance(parameters, dict):
            return ()
        calls.append(ToolCall(name, parameters))
    return tuple(calls)


def is_unparsed(text: str) -> bool:
    r"""Whether an answer has a block of calls and none can be read: BFCL then takes it for a refusal.

    A refusal is an answer without a block, whatever else it says, or with a call of `none`. A tag in a thought opens
    no block.

    >>> is_unparsed('<tool_call>\n{"name": "sky", "param\n</tool_call>'), is_unparsed("<response> No. </response>")
    (True, False)
    """
    _, tag, block = text.rpartition("<tool_call>")
    refuses = any(_is_none(name) for name, _ in _named(text))
    return bool(tag) and "</think>" not in block and not refuses and not decode_calls(text)


def _named(text: str) -> Iterator[tuple[str, JsonValue]]:
    """Name and parameters of each line of the last block that has both."""
    _, tag, block = text.rpartition("<tool_call>")
    for line in block.split("</tool_call>")[0].strip().split("\n") if tag else ():
        value = _read(line)
        if isinstance(value, dict) and isinstance(value.get("name"), str) and "parameters" in value:
            yield value["name"], value["parameters"]


def _is_none(name: str) -> bool:
    return name.strip().lower() == "none"


def _read(line: str) -> JsonValue:
    """The line as JSON, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or an integer too long to convert; nested too deeply
        return None
    return None if _too_deep(value) else value


def _too_deep(value: JsonValue) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
