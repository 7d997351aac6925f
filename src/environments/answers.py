"""From an answer of the policy to what it observes, the same for all environments with tools.

Calls come from a model and results from a tool: both are data. Whatever is wrong with one is said in words, which the
policy reads, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.validators import extend  # type: ignore[import-untyped]
from referencing import Registry

from src.environments.bfcl.calls import well_formed, within_bounds
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec, is_schema
from src.protocol.types import ParsedResponse

_MOST_PROBLEMS = 3
_MOST_SHOWN = 300
_DIED = "Error: the tools have ended unexpectedly. This call has no result."


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call.

    Attributes:
        text: what the tool gave, or its error.
        problem: the name in `Episode.counts` of what went wrong; empty: nothing.
        size: characters of a text of which `text` is the beginning; 0: it is the whole.
    """

    text: str
    problem: str = ""
    size: int = 0

    @classmethod
    def missing(cls, problem: str, seconds: float) -> Result:
        """The result of a call that has none.

        Args:
            problem: `timeout` or `tool_died`.
            seconds: the time limit.

        >>> Result.missing("timeout", 2.5).text
        'Error: the call did not end within 2.5 seconds.'
        """
        late = f"Error: the call did not end within {seconds:g} seconds."
        return cls(_DIED if problem == "tool_died" else late, problem)


class ToolRunner:
    """Runs the calls of answers and writes what the policy observes.

    Args:
        tools: on offer.
        run: results of calls that fit their tools, in order.
        result_limit: characters of an observation, after which it is cut.
        hidden: texts that no error shows, e.g. folders and secrets.

    Attributes:
        counts: see `Episode`.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        run: Callable[[Sequence[ToolCall]], Sequence[Result]],
        result_limit: int,
        hidden: Sequence[str] = (),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._tools = {tool.name: tool for tool in tools}
        self._run = run
        self._result_limit = result_limit
        self._hidden = sorted((text for text in hidden if len(text) > 3), key=len, reverse=True)

    def observations(self, answer: ParsedResponse) -> tuple[Message, ...]:
        """One for each call, in their order; one for calls that cannot be read; none for an answer without calls."""
        if unreadable := _unreadable(answer):
            return (self._observation(ToolCall("", {}), Result(unreadable, "malformed")),)
        calls = answer.calls or ()
        results = {index: refused for index, call in enumerate(calls) if (refused := self._refused(call))}
        accepted = [index for index in range(len(calls)) if index not in results]
        if accepted:
            ran = self._run([calls[index] for index in accepted])
            results |= dict(zip(accepted, ran, strict=True))
        return tuple(self._observation(call, results[index]) for index, call in enumerate(calls))

    def _refused(self, call: ToolCall) -> Result | None:
        """Why a call is not run; None: it is."""
        if call.name not in self._tools:
            known = f"The tools are: {', '.join(self._tools) or 'none'}."
            return Result(f"Error: there is no tool {call.name[:_MOST_SHOWN]!r}. {known}", "unknown_tool")
        problems = argument_problems(self._tools[call.name], call)
        if not problems:
            return None
        return Result(f"Error: wrong arguments for {call.name}: {'; '.join(problems)}.", "wrong_arguments")

    def _observation(self, call: ToolCall, result: Result) -> Message:
        text = result.text
        if result.problem:
            for hidden in self._hidden:
                text = text.replace(hidden, "…")
            self.counts[result.problem] += 1
        text, is_cut = shortened(text, self._result_limit, result.size)
        if is_cut:
            self.counts["cut_result"] += 1
        return Message("observation", text, name=well_formed(call.name), call_id=well_formed(call.id))


def shortened(text: str, limit: int, size: int = 0) -> tuple[str, bool]:
    r"""Text of at most `limit` characters, a note of what was left out besides, and whether something was.

    Args:
        text: lone surrogates become question marks.
        limit: in characters.
        size: of the text of which this is the beginning; 0: it is the whole.

    >>> shortened("ab\ud800cdef", 3)
    ('ab?\n… 4 of 7 characters left out.', True)
    """
    whole = max(size, len(text))
    if whole <= limit:
        return well_formed(text), False
    return f"{well_formed(text[:limit])}\n… {whole - limit:,} of {whole:,} characters left out.", True


def _unreadable(answer: ParsedResponse) -> str:
    """Why calls cannot be run that an answer tries to make; empty: they can, or it makes none."""
    closed = [done for name, done in zip(answer.fields, answer.closed, strict=True) if name == "tool_call"]
    if not all(closed):
        return "Error: a tool call has no end, so no call was run."
    if not closed or answer.calls:
        return ""
    wanted = "A call is a tool's name and a JSON object of arguments."
    return f"Error: a tool call could not be read, so no call was run. {wanted}"


def _or_null(check: Any) -> Any:
    """The check of a schema's keyword, which passes null where `nullable` allows it, as OpenAPI and transformers do."""

    def checked(validator: Any, value: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        if instance is not None or not schema.get("nullable"):
            yield from check(validator, value, instance, schema) or ()

    return checked


_Validator: Any = extend(
    Draft202012Validator,
    {
        **{name: _or_null(Draft202012Validator.VALIDATORS[name]) for name in ("type", "enum", "anyOf")},
        "pattern": lambda *_: (),  # a regular expression can take for ever
    },
)


def argument_problems(tool: ToolSpec, call: ToolCall) -> list[str]:
    """What is wrong with a call's arguments by the tool's schema, in words; at most three problems.

    Parameters that the schema does not name are wrong unless it says that there may be others, or names none at all.

    >>> sky = ToolSpec.of("sky", "", {"city": {"type": "string"}})
    >>> argument_problems(sky, ToolCall("sky", {"city": 5, "town": "Oslo"}))
    ["there is no parameter 'town' (there are: city)", "city: 5 is not of type 'string'"]
    """
    if not within_bounds(call):
        return ["they are too large"]
    schema = _schema(tool)
    named, is_open = schema.get("properties", {}), schema.get("additionalProperties", "properties" not in schema)
    unknown = [] if is_open else sorted(call.parameters.keys() - named.keys())
    known = ", ".join(named) or "none"
    problems = [f"there is no parameter {name[:_MOST_SHOWN]!r} (there are: {known})" for name in unknown]
    given = {name: value for name, value in call.parameters.items() if name not in unknown}
    try:
        errors = list(islice(_Validator(schema, registry=Registry()).iter_errors(given), _MOST_PROBLEMS))
    except Exception:  # noqa: BLE001 - not a schema after all: the tool itself says what it does not take
        errors = []
    for error in errors:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
        problems.append(f"{place[1:]}: {error.message}" if place else error.message)
    return [one if len(one) <= _MOST_SHOWN else f"{one[:_MOST_SHOWN]}…" for one in problems[:_MOST_PROBLEMS]]


def _schema(tool: ToolSpec) -> dict[str, JsonValue]:
    """The schema of the tool's parameters, whichever way the tool writes them."""
    wrapped = tool.json.get("function")
    function = wrapped if isinstance(wrapped, Mapping) else tool.json
    given = function.get("parameters") or function.get("input_schema") or {}
    if not is_schema(given):
        return {"type": "object", "properties": dict(tool.parameters)}
    properties = {"properties": dict(tool.parameters)} if "properties" in given else {}
    return {**given, "type": "object", **properties}
