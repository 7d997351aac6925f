"""A BFCL case and what happened in it so far to the prompt, in the layout of the training data.

Two wordings. `official` gives the case as the benchmark states it; `toolrl` is what the published ToolRL handler sends
(`benchmarks/BFCL/rlla_qwen.py`, with the turn type that it always has), to the letter:

| part                  | official                                     | toolrl                                       |
|-----------------------|----------------------------------------------|----------------------------------------------|
| user message          | verbatim                                     | stripped, with its single-turn suffix        |
| system message of a   | after the protocol's instructions and a      | dropped                                      |
| live case             | blank line, where the package puts it too    |                                              |
| assistant message of  | `<response> … </response>`                   | as it stands                                 |
| a live case           |                                              |                                              |
| earlier answer        | as the model wrote it                        | as the model wrote it                        |
| results of a step     | one `<obs>` with a JSON list, as in the      | one `<obs>` a call, in words; after the last |
|                       | training data                                | one a `<user>` that asks to retry or finish  |

Function docs carry the package's language hints in both. Functions that a later turn brings come in that turn's user
message, worded by the package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from src.data.rendering import HISTORY_HEAD, published_system
from src.environments.bfcl.calls import as_python, well_formed
from src.protocol.dialogue import ChatPrompt, JsonValue, ToolCall, ToolSpec
from src.wings.evaluation.bfcl.dataset import Case, Json

TurnWording = Literal["official", "toolrl"]

_LANGUAGE_HINTS: Mapping[str, str] = {
    "java": " Note that the provided function is in Java 8 SDK syntax.",
    "javascript": " Note that the provided function is in JavaScript syntax.",
}
_PYTHON_HINT = " Note that the provided function is in Python 3 syntax."
_MORE_FUNCTIONS = "{functions}\nI have updated some more functions you can choose from. What about now?"

_TOOLRL_SUFFIX = (
    "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in your "
    "response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one or more "
    "necessary tool calls to complete the given task in this turn."
)
_TOOLRL_RETRY = (
    "If you think you have completed the current task, or the task cannot be finished, please respond directly without "
    "additional tool calls. If you encounter an error during tool execution or the task remains unfinished, retry with "
    "the one or more necessary tool calls according to your thought and plan until completion. Based on the tool "
    "execution feedback, reflect on if understanding or selectioin of tool is wrong, what tool calling step is "
    "missing, and how to achieve the task goal from now on."
)


@dataclass(frozen=True, slots=True)
class Step:
    """One answer within a turn; `results` are those of its calls, none where the answer ended the turn."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    results: tuple[str, ...] = ()


@dataclass(slots=True)
class Turn:
    """The given messages that open a turn, and the model's steps so far."""

    messages: Sequence[Mapping[str, str]]
    steps: list[Step] = field(default_factory=list)


def turn_messages(case: Case, index: int) -> Sequence[Mapping[str, str]]:
    """The given messages of a turn; where functions come with it, the package's own message with their docs."""
    if index in case.held_back:
        docs = list(case.held_back[index])
        return [{"role": "user", "content": _MORE_FUNCTIONS.format(functions=docs)}]
    return case.question[index]


def build_prompt(case: Case, turns: Sequence[Turn], wording: TurnWording) -> ChatPrompt:
    """The prompt for the next answer of a case."""
    system = published_system(tool_specs(case))
    if wording == "toolrl":
        return ChatPrompt(system + "\n", (HISTORY_HEAD + _toolrl_records(turns)).strip())
    given = [message["content"] for turn in turns for message in turn.messages if message["role"] == "system"]
    return ChatPrompt("\n\n".join([system, *given]), HISTORY_HEAD + _official_records(turns))


def tool_specs(case: Case) -> list[ToolSpec]:
    """The tools that the prompt offers from the start, with language hints."""
    docs = hinted(case.functions, case.category)
    return [ToolSpec(doc["name"], doc["description"], doc["parameters"].get("properties", {})) for doc in docs]


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


def _official_records(turns: Sequence[Turn]) -> str:
    """The layout of `src.data.rendering.published_prompt`; an `<obs>` follows its calls on the next line."""
    records = []
    for turn in turns:
        for message in turn.messages:
            if message["role"] == "user":
                records.append(f"<user> {message['content']} </user>")
            elif message["role"] == "assistant":
                records.append(f"<response> {message['content']} </response>")
        for step in turn.steps:
            written = [step.text.strip()]
            if step.results:
                written.append(f"<obs> {observation(step.calls, step.results)} </obs>")
            records.append("\n".join(filter(None, written)))
    return "\n\n".join(filter(None, records))


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


def _toolrl_records(turns: Sequence[Turn]) -> str:
    records = ""
    for turn in turns:
        for message in turn.messages:
            content = message["content"].strip()
            if message["role"] == "user":
                records += f"<user> {content}\n{_TOOLRL_SUFFIX} </user>\n"
            elif message["role"] == "assistant":
                records += f"\n{content}\n"
        for step in turn.steps:
            records += f"\n{step.text.strip()}\n"
            for call, result in zip(step.calls, step.results, strict=True):
                shown = well_formed(f"{as_python(call).strip()}. Execution returns: {result.strip()}")
                records += f"<obs> You have made the tool call {shown} </obs>\n"
    if turns and turns[-1].steps and turns[-1].steps[-1].results:
        records += f"\n<user> {_TOOLRL_RETRY} </user>\n"
    return records
