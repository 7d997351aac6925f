"""Dialogues as OpenAI has them: rows of `messages` and `tools`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from src.data.sources.base import CorpusSource, dialogue_examples, json_calls
from src.data.sources.reading import Record, parse_json, require
from src.data.sources.tools import tool_specs
from src.protocol.dialogue import (
    DataError,
    Dialogue,
    JsonValue,
    Message,
    ToolCall,
    ToolSpec,
    TurnExample,
    joined_steps,
)

_ROLES: Mapping[str, Literal["system", "user", "assistant", "calls", "observation"]] = {
    **{"system": "system", "developer": "system", "user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "tool_call": "calls", "function_call": "calls"},
    **dict.fromkeys(("tool", "function", "tool_response", "observation"), "observation"),
}
_PARTS = {"text": "text", "refusal": "text", "reasoning": "thought", "thinking": "thought", "tool_call": "calls"}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MARKS = ("train", "loss", "weight")
_THINK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_REST_OF_THOUGHT = re.compile(r"((?:(?!<think>).)*?)</think>(?=\s*\S)", re.DOTALL)
TrainOn = Literal["all", "last", "marked"]


class MessagesSource(CorpusSource):
    """Records `{"messages": [{"role", "content", "tool_calls", …}, …], "tools": […]}`, both also as JSON text.

    `tool_choice` and `parallel_tool_calls` are held to as OpenAI means them; every other column is kept with the
    examples. An assistant message before the first of the user is never a target.

    Args:
        train_on: which assistant messages are targets: `all`, the `last`, or those `marked` by a true `train` or
            `loss`, or by a `weight` of 1. In a row with weights, a message without one weighs 1.
        **corpus: see `CorpusSource`.
    """

    default_name = "messages"

    def __init__(self, train_on: TrainOn = "all", **corpus: Any) -> None:
        super().__init__(**corpus)
        if train_on not in ("all", "last", "marked"):
            raise ValueError(f"train_on: expected 'all', 'last' or 'marked', found {train_on!r}.")
        self.train_on = train_on

    def convert(self, record: Record) -> list[TurnExample]:
        """One example a target."""
        return self.examples(record, dict(record.value), "messages")

    def examples(
        self, record: Record, row: dict[str, JsonValue], key: str, opening: tuple[Message, ...] = ()
    ) -> list[TurnExample]:
        """The examples of a row of messages.

        Args:
            record: where the row is from.
            row: its columns; those that are read are taken out.
            key: the column of the messages.
            opening: messages before those.

        Returns:
            One example a target.

        Raises:
            DataError: a value of another shape, a result without its call, a call that is not on offer, a target that
                the row itself forbids, or no target at all.
        """
        where = record.where
        turns = _parsed(row, key, where)
        if not isinstance(turns, list):
            require({**row, **({} if turns is None else {key: turns})}, key, list, where)
        row.pop(key)
        column = "functions" if row.get("tools") is None and row.get("functions") is not None else "tools"
        tools = tool_specs(_parsed(row, column, where) or [], where, column)
        row.pop(column, None)
        choice = _Choice.of(row, tools, where)
        messages, fields = _Reader(where, tools).dialogue(turns, key)
        messages, fields = [*opening, *messages], ["system"] * len(opening) + fields
        messages = self._targets(messages, where, key)
        for index, step in joined_steps(messages):
            if step.role == "assistant" and step.trained:
                choice.check(step, where, fields[index])
        offered = () if choice.kind == "none" else tools
        return dialogue_examples(Dialogue(offered, tuple(messages), self.name, record.id, where, row))

    def _targets(self, messages: list[Message], where: str, key: str) -> list[Message]:
        """The messages, with `trained` as `train_on` says."""
        roles = [message.role for message in messages]
        for role in ("user", "assistant"):
            if role not in roles:
                raise DataError(where, key, f"at least one {role} message", roles, "Complete the dialogue, or drop it.")
        answers = [index for index, role in enumerate(roles) if role == "assistant" and index > roles.index("user")]
        marked = [index for index in answers if messages[index].trained]
        chosen = {"all": answers, "last": answers[-1:], "marked": marked}[self.train_on]
        if not answers:
            raise DataError(where, key, "an assistant message after the first of the user", roles, "Add the answer.")
        if not chosen:
            expected = "an assistant message that is marked by train, loss or weight"
            raise DataError(where, key, expected, roles, "Mark one, or set data.train.train_on to all or last.")
        return [replace(message, trained=index in chosen) for index, message in enumerate(messages)]


def read_messages(turns: list[JsonValue], where: str, key: str) -> list[Message]:
    """The messages under a key of a row. Calls in them need not be of a tool on offer.

    Raises:
        DataError: a message of another shape.
    """
    return _Reader(where, None).dialogue(turns, key)[0]


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a row's `tool_choice` and `parallel_tool_calls` ask of its targets; `kind` is a tool's name after `of:`."""

    kind: str
    single: bool

    @classmethod
    def of(cls, row: dict[str, JsonValue], tools: tuple[ToolSpec, ...], where: str) -> _Choice:
        """Take both columns out of a row."""
        value, parallel = row.pop("tool_choice", None), row.pop("parallel_tool_calls", None)
        if not isinstance(parallel, bool | None):
            raise DataError(where, "parallel_tool_calls", "true, false or null", parallel)
        if isinstance(value, str) and value.startswith("{"):
            value = parse_json(value, where, "tool_choice")
        function = value.get("function", value) if isinstance(value, dict) else None
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            if name not in (known := sorted(tool.name for tool in tools)):
                raise DataError(where, "tool_choice", f"a tool on offer ({', '.join(known) or 'none'})", name)
            value = f"of:{name}"
        elif value not in (None, "auto", "none", "required"):
            expected = (
                '\'auto\', \'none\', \'required\', or a function as {"type": "function", "function": {"name": …}}'
            )
            raise DataError(where, "tool_choice", expected, value)
        return cls(value or "auto", parallel is False)

    def check(self, step: Message, where: str, field: str) -> None:
        """Refuse a target that the row's own columns forbid."""
        names = [call.name for call in step.calls]
        named = self.kind.removeprefix("of:") if self.kind.startswith("of:") else None
        for broken, expected in (
            (self.kind == "none" and names, "no calls, as tool_choice is 'none'"),
            (self.kind == "required" and not names, "a call, as tool_choice is 'required'"),
            (named is not None and named not in names, f"a call of '{named}', as tool_choice names it"),
            (self.single and len(names) > 1, "one call, as parallel_tool_calls is false"),
        ):
            if broken:
                advice = "Correct the column or the message, or choose other targets with data.train.train_on."
                raise DataError(where, field, expected, names or step.text, advice)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the messages of one row."""

    where: str
    tools: tuple[ToolSpec, ...] | None

    def dialogue(self, turns: list[JsonValue], key: str) -> tuple[list[Message], list[str]]:
        """The messages, and where each begins in the record; messages that are calls alone join the step before."""
        messages: list[Message] = []
        fields: list[str] = []
        called: dict[str, str] = {}
        weighted = any(isinstance(turn, dict) and turn.get("weight") is not None for turn in turns)
        for index, turn in enumerate(turns):
            field = f"{key}[{index}]"
            role, message = self.message(turn, field)
            if message.role == "observation":
                message = self.answered(message, called, field, any(one.calls for one in messages))
            if message.role == "assistant":
                message = replace(message, trained=self.marked(turn, field, weighted))
                called |= {call.id: call.name for call in message.calls if call.id}
            if role == "calls" and messages and (last := messages[-1]).role == "assistant":
                thought = "\n".join(filter(None, (last.thought, message.thought)))
                trained, calls = last.trained or message.trained, last.calls + message.calls
                messages[-1] = replace(last, thought=thought, calls=calls, trained=trained)
            else:
                messages.append(message)
                fields.append(field)
        messages = _in_order(messages)
        for message, field in zip(messages, fields, strict=True):
            if message.role == "assistant" and not message.calls and not message.text:
                raise DataError(self.where, field, "text or calls", "neither", "Complete the message, or drop it.")
        return messages, fields

    def message(self, turn: JsonValue, field: str) -> tuple[str, Message]:
        """The role as `_ROLES` has it, and the message by itself."""
        if not isinstance(turn, dict):
            raise DataError(self.where, field, "an object", turn)
        said, key = ("from", "value") if "from" in turn else ("role", "content")
        name = require(turn, said, str, self.where, f"{field}.")
        role, place = _ROLES.get(name), f"{field}.{key}"
        if role is None:
            raise DataError(self.where, f"{field}.{said}", f"one of {', '.join(_ROLES)}", name, "Rename the role.")
        content = turn.get(key)
        if role != "assistant" and key not in turn:
            require(turn, key, str, self.where, f"{field}.")
        if role == "observation":
            tool, id = self.text_of(turn, "name", field), turn.get("tool_call_id")
            id = str(id) if isinstance(id, int) else self.text_of(turn, "tool_call_id", field)
            return role, Message(role, self.result(content, place), name=tool, call_id=id)
        if role == "calls":
            thought, content = _split(content) if isinstance(content, str) else ("", content)
            return role, Message("assistant", "", thought, self.calls(content, place))
        text, thoughts, calls = self.parts(content, place, role == "assistant")
        if role != "assistant":
            return role, Message(role, text)
        text = text or self.text_of(turn, "refusal", field)
        given = [self.text_of(turn, k, field) for k in _THOUGHTS]
        thought, text = _split(text, whole=any((*given, *thoughts)))
        if text.lstrip().startswith("<think>"):
            raise DataError(self.where, place, "a thought with its end, </think>", text, "Complete it, or drop this.")
        for k in ("tool_calls", "function_call"):
            calls += self.calls(turn[k], f"{field}.{k}") if turn.get(k) not in (None, "") else ()
        once = dict.fromkeys(part.strip() for part in (*given, *thoughts, thought) if part.strip())
        return role, Message(role, text.strip(), "\n".join(once), calls)

    def text_of(self, turn: Mapping[str, JsonValue], key: str, field: str) -> str:
        """The text under a key of a message; empty where it is missing or null."""
        return require(turn, key, str, self.where, f"{field}.") if turn.get(key) is not None else ""

    def answered(self, result: Message, called: Mapping[str, str], field: str, any_call: bool) -> Message:
        """The result with the name of the tool that its id stands for."""
        if not any_call:
            raise DataError(self.where, field, "a call before its result", result.text, "Add the call, or drop this.")
        if result.call_id and result.call_id not in called:
            expected = f"the id of an earlier call ({', '.join(called) or 'none'})"
            advice = "Correct the id here or of the call."
            raise DataError(self.where, f"{field}.tool_call_id", expected, result.call_id, advice)
        return replace(result, name=result.name or called.get(result.call_id, ""))

    def marked(self, turn: Mapping[str, JsonValue], field: str, otherwise: bool) -> bool:
        """Whether a message is to be learnt by its own marks; `otherwise` where it has none."""
        for key in _MARKS:
            if (value := turn.get(key)) is not None:
                if value not in (0, 1):
                    advice = "A share of a message's loss is not supported."
                    raise DataError(self.where, f"{field}.{key}", "true or false, 1 or 0", value, advice)
                return bool(value)
        return otherwise

    def calls(self, value: JsonValue, place: str) -> tuple[ToolCall, ...]:
        """Calls from JSON or JSON text."""
        value = parse_json(value, self.where, place) if isinstance(value, str) else value
        return json_calls(value, self.where, place, self.tools)

    def result(self, content: JsonValue, place: str) -> str:
        """The text of a result; what is no text and no parts is written as JSON."""
        if content is None or isinstance(content, str) or _is_parts(content):
            return self.parts(content, place, False)[0]
        return json.dumps(content, ensure_ascii=False)

    def parts(self, content: JsonValue, place: str, assistant: bool) -> tuple[str, list[str], tuple[ToolCall, ...]]:
        """Text, thoughts and calls of a content; thoughts and calls are an assistant's only."""
        if content is None or isinstance(content, str):
            return content or "", [], ()
        if not isinstance(content, list):
            raise DataError(self.where, place, "text, null or a list of parts", content)
        text, thoughts = "", []
        calls: tuple[ToolCall, ...] = ()
        for index, part in enumerate(content):
            path = f"{place}[{index}]"
            kind = require(part if isinstance(part, dict) else {}, "type", str, self.where, f"{path}.")
            meaning = _PARTS.get(kind)
            if meaning is None or not (assistant or meaning == "text"):
                expected = "a part of text, reasoning or a tool call" if assistant else "a part of text"
                raise DataError(self.where, f"{path}.type", expected, kind, "Drop the part or the record.")
            key = next((name for name in (kind, "text", "value") if name in part), "text")
            if meaning == "calls":
                calls += self.calls(part.get(key, part), f"{path}.{key}" if key in part else path)
            elif meaning == "thought":
                thoughts.append(require(part, key, str, self.where, f"{path}."))
            else:
                text += require(part, key, str, self.where, f"{path}.")
        return text, thoughts, calls


def _in_order(messages: list[Message]) -> list[Message]:
    """The same with the results of each step in the order of its calls, where all have the id of one."""
    found: list[Message] = []
    ids: dict[str, int] = {}
    for observed, group in groupby(messages, lambda message: message.role == "observation"):
        several = list(group)
        if observed and all(message.call_id in ids for message in several):
            several.sort(key=lambda message: ids[message.call_id])
        elif not observed:
            ids = {call.id: index for index, call in enumerate(several[-1].calls) if call.id}
        found += several
    return found


def _split(text: str, *, whole: bool = False) -> tuple[str, str]:
    """The thought that a text opens with, and the rest. Unless `whole`, its `<think>` may have stood in the prompt.

    >>> _split("<think> Easy. </think> Four."), _split("Easy.</think> Four."), _split("Four.</think>")
    (('Easy.', ' Four.'), ('Easy.', ' Four.'), ('', 'Four.</think>'))
    """
    opened = _THINK.match(text) or (None if whole else _REST_OF_THOUGHT.match(text))
    return (opened[1].strip(), text[opened.end() :]) if opened else ("", text)


def _is_parts(content: JsonValue) -> bool:
    """Whether a result is a list of parts, each with a key that its type names, and no JSON of its own."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, dict)
            and isinstance(kind := part.get("type"), str)
            and (kind in part or (kind == "text" and "value" in part))
            for part in content
        )
    )


def _parsed(row: Mapping[str, JsonValue], key: str, where: str) -> JsonValue:
    value = row.get(key)
    if not isinstance(value, str):
        return value
    return parse_json(value, where, key) if value.strip() else None
