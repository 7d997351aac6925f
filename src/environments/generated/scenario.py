"""A world, its tools, what its user asks for, and how a call is run in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from src.environments.generated.domains import Domain, Operation, RefusedError, Request, Store
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec

Role = Literal["find", "look", "act", "other"]

_LONGEST, _LARGEST = 40, 1_000_000
"""A longer text or a larger number is no argument."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A domain in the words of one world.

    Attributes:
        domain: its rules.
        noun: what a record is called.
        labels: words for `id`, `name` and `state`, and for the values that `act` and `other` take.
        choices: words of a state of the style `choice`.
        verbs: what `act` and `other` do.
    """

    domain: Domain
    noun: str
    labels: Mapping[str, str]
    choices: tuple[str, ...]
    verbs: Mapping[str, str]

    def keys(self, role: Role) -> tuple[str, ...]:
        """Names of a tool's parameters."""
        if role == "find":
            return (self.labels["name"],)
        if role == "look":
            return (self.labels["id"],)
        operation = self.operation(role)
        return (*(() if operation.alone else (self.labels["id"],)), *((self.labels[role],) if operation.takes else ()))

    def operation(self, role: Role) -> Operation:
        """What a tool of the role `act` or `other` does."""
        return self.domain.act if role == "act" else self.domain.other


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool on offer, and what it does to which records."""

    spec: ToolSpec
    kind: Kind
    role: Role


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and the right steps that follow.

    Attributes:
        user: the user's words.
        steps: of the assistant; the last one speaks, the others call.
        wanted: what the last one must name.
        rivals: what it must not name.
        slip: steps with calls that a careless policy takes instead, if there are such.
    """

    user: str
    steps: tuple[Message, ...]
    wanted: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    slip: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """All of a task.

    Attributes:
        tools: on offer, by name, in the prompt's order.
        records: at the beginning.
        turns: of the right play.
        errors: wording of what is refused, by remedy.
        done: how the assistant says that it is done.
    """

    tools: Mapping[str, Tool]
    records: Store
    turns: tuple[Turn, ...]
    errors: Mapping[str, str]
    done: str

    def run(self, store: Store, call: ToolCall) -> dict[str, JsonValue]:
        """Run a call on a store, which it may change, and say what the tool returns.

        Raises:
            CallError: it cannot be run; the store is as it was.
        """
        tool = self.tools.get(call.name)
        if tool is None:
            raise CallError("unknown_tool", "no such tool")
        _check_arguments(tool.spec, call.parameters)
        kind = tool.kind
        values = [call.parameters[key] for key in kind.keys(tool.role)]
        if tool.role == "find":
            for id, record in store.items():
                if record["kind"] == kind.noun and record["name"] == values[0]:
                    return {kind.labels["id"]: id}
            raise CallError("tool_error", self.errors["missing"].format(label=kind.labels["name"]))
        id = values.pop(0) if kind.labels["id"] in call.parameters else ""
        if id and store.get(id, {}).get("kind") != kind.noun:
            raise CallError("tool_error", self.errors["missing"].format(label=kind.labels["id"]))
        if tool.role == "look":
            return {kind.labels["state"]: store[id]["state"]}
        try:
            kind.operation(tool.role).run(Request(store, id, values[0] if values else None, kind.choices))
        except RefusedError as refused:
            raise CallError("tool_error", self._refusal(kind, refused)) from refused
        return {"ok": True}

    def _refusal(self, kind: Kind, refused: RefusedError) -> str:
        role = "look" if refused.remedy == "look" else "other"
        named = next((name for name, tool in self.tools.items() if tool.kind is kind and tool.role == role), None)
        if not refused.remedy or (named is None and refused.remedy != "elsewhere"):
            return self.errors["refused"]
        with_value = refused.remedy == "first" and refused.value is not None
        wording = self.errors["first_with" if with_value else refused.remedy]
        return wording.format(tool=named, value=refused.value, state=kind.labels["state"])


class CallError(Exception):
    """A call that cannot be run.

    Args:
        count: what it counts as, a name of `Episode.counts`.
        text: what the policy reads.
    """

    def __init__(self, count: str, text: str) -> None:
        super().__init__(text)
        self.count, self.text = count, text


def _check_arguments(tool: ToolSpec, given: Mapping[str, JsonValue]) -> None:
    for key in given:
        if key not in tool.parameters:
            raise CallError("wrong_arguments", "unknown parameter")
    for key, about in tool.parameters.items():
        if key not in given:
            raise CallError("wrong_arguments", f"{key} is missing")
        value = given[key]
        if about["type"] == "integer":
            fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
        else:
            fits = isinstance(value, str) and 0 < len(value) <= _LONGEST
        if not fits:
            raise CallError("wrong_arguments", f"{key}: expected {about['type']}")


def calls_of(steps: Sequence[Message]) -> list[ToolCall]:
    """All calls of some steps, in order."""
    return [call for step in steps for call in step.calls]
