"""The world of a BFCL case: its tools as prompts offer them, its backends behind the sandbox, its results as read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence

from src.environments.bfcl.cases import Case, Json, class_functions, data_folder, load_cases
from src.environments.bfcl.sandbox import Sandbox
from src.environments.protocol import LimitError
from src.errors import ConfigError, advice
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec

_LANGUAGE_HINTS: Mapping[str, str] = {
    "java": " Note that the provided function is in Java 8 SDK syntax.",
    "javascript": " Note that the provided function is in JavaScript syntax.",
}
_PYTHON_HINT = " Note that the provided function is in Python 3 syntax."
_MORE_FUNCTIONS = "{functions}\nI have updated some more functions you can choose from. What about now?"
_CATEGORY = "multi_turn_base"


class CaseWorld:
    """The world of a multi-turn case. See `World`.

    Args:
        case: whose tools and initial state these are.
        executor: replays the steps so far from the initial state.
    """

    def __init__(self, case: Case, executor: Sandbox) -> None:
        self.tools = tuple(tool_specs(case))
        self.hint = str(case.question[0][-1]["content"])  # what the case's user asks first
        self._case = case
        self._executor = executor
        self._steps: list[tuple[ToolCall, ...]] = []

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `World`.

        Raises:
            LimitError: the executor's limit of time or memory; the step did not happen.
        """
        execution = self._executor.execute(self._case.entry, [*self._steps, tuple(calls)])
        if execution.error_type:
            raise LimitError(execution.error_type)
        self._steps.append(tuple(calls))
        return list(execution.results)

    def observations(self, calls: Sequence[ToolCall], results: Sequence[str]) -> tuple[Message, ...]:
        """One for the whole step; see `observation`."""
        return (Message("observation", observation(calls, results)),)

    def reset(self) -> None:
        """Forget the steps."""
        self._steps = []

    def close(self) -> None:
        """End the executor's process."""
        self._executor.close()


class BfclWorld(CaseWorld):
    """A world of BFCL's multi-turn backends that a user chooses, and that goes on after a step over a limit.

    Args:
        classes: of the backends, e.g. `GorillaFileSystem`; each starts from the state of the first case of
            multi_turn_base that has it.
        sandbox: the worker and its limits.

    Raises:
        ConfigError: there is no such class.
        BenchmarkDataError: bfcl-eval is not installed.
    """

    def __init__(self, classes: Sequence[str], sandbox: Sandbox) -> None:
        super().__init__(_world(load_cases(_CATEGORY), classes), sandbox)

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `World`. That a step hit a limit of the sandbox is its result."""
        try:
            return super().run(calls)
        except LimitError as error:
            limit = f"{self._executor.time_limit:g} s" if error.limit == "time_limit" else "the memory limit"
            return [json.dumps({"error": f"not executed: the calls took more than {limit}"})] * len(calls)


def turn_messages(case: Case, index: int) -> Sequence[Mapping[str, str]]:
    """The given messages of a turn; where functions come with it, the package's own message with their docs."""
    if index in case.held_back:
        docs = list(case.held_back[index])
        return [{"role": "user", "content": _MORE_FUNCTIONS.format(functions=docs)}]
    return case.question[index]


def tool_specs(case: Case) -> list[ToolSpec]:
    """The tools that the prompt offers from the start, with language hints."""
    return [ToolSpec(doc) for doc in hinted(case.functions, case.category)]


def hinted(functions: Sequence[Json], category: str) -> list[Json]:
    """Function docs with the package's hints (`func_doc_language_specific_pre_processing`), the given ones untouched.

    Every description names the language. Java and JavaScript parameters become strings that hold source literals, and
    their descriptions say of which type.
    """
    docs = [
        {**doc, "description": doc["description"] + _LANGUAGE_HINTS.get(category, _PYTHON_HINT)} for doc in functions
    ]
    if category in _LANGUAGE_HINTS:
        for doc in docs:
            doc["parameters"] = copy.deepcopy(doc["parameters"])
            for parameter in doc["parameters"]["properties"].values():
                _as_source_literal(parameter, category)
    return docs


def _as_source_literal(parameter: Json, category: str) -> None:
    language, lists = ("Java", ("ArrayList", "Array")) if category == "java" else ("JavaScript", ("array",))
    kind = parameter["type"]
    if kind == "any":
        added = f" This parameter can be of any type of {language} object in string representation."
    else:
        added = f" This is {language} {kind} type parameter in string representation."
    if kind in lists:
        items = parameter.pop("items")["type"]
        added += f" The list elements are of type {items}; they are not in string representation."
    if language == "JavaScript" and kind == "dict" and "properties" in parameter:
        schema = json.dumps(parameter.pop("properties"))
        added += " The dictionary entries have the following schema; they are not in string representation. " + schema
    parameter["description"] += added
    parameter["type"] = "string"


def observation(calls: Sequence[ToolCall], results: Sequence[str]) -> str:
    """Results of a step as in the training data: what is JSON stands as JSON.

    >>> observation([ToolCall("pwd", {}), ToolCall("cat", {})], ['{"path": "/a"}', "not found"])
    '[{"name": "pwd", "results": {"path": "/a"}}, {"name": "cat", "results": "not found"}]'
    """
    return json.dumps(
        [{"name": call.name, "results": _embedded(result)} for call, result in zip(calls, results, strict=True)]
    )


def _embedded(result: str) -> JsonValue:
    try:
        value = json.loads(result)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return result
    return value


def _world(cases: Sequence[Case], classes: Sequence[str]) -> Case:
    """A case with these classes and no others, their states from the first cases that have them."""
    first: dict[str, Case] = {}
    for case in cases:
        for name in case.entry["involved_classes"]:
            first.setdefault(name, case)
    if not classes:
        raise ConfigError(f"tools.classes: expected at least one of {', '.join(sorted(first))}, found none.")
    for name in classes:
        if name not in first:
            raise ConfigError(f"tools.classes: no class is called {name!r}. {advice(name, first)}")
    asked = min(cases, key=lambda case: len(set(classes) ^ set(case.entry["involved_classes"])))
    entry = {
        "id": asked.id,
        "question": asked.question,
        "involved_classes": list(classes),
        "initial_config": {name: first[name].entry["initial_config"].get(name, {}) for name in classes},
    }
    docs = [doc for name in classes for doc in class_functions(data_folder(), name)]
    return Case(asked.id, _CATEGORY, entry, docs)
