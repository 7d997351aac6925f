"""What kinds of stores there are, and the rules by which they differ.

A record has a name, by which its id is found, and a state, which is read by id. Two operations change something: `act`,
which a rule may forbid, and `other`, which is often what to do then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from src.protocol.dialogue import JsonValue

Record = dict[str, JsonValue]
"""`kind`, `name`, `state`, and what operations add; a place has nothing but an empty `kind`."""

Store = dict[str, Record]
"""Records by id."""

FREE = "none"
"""The state of what nobody has."""

Remedy = Literal["first", "instead", "elsewhere", "look", ""]


class RefusedError(Exception):
    """A rule forbids an operation.

    Args:
        remedy: `first`: the other operation first, then this one again. `instead`: the other one in its place.
            `elsewhere`: this one with another record. `look`: this one with the state as its value. Empty: nothing.
        value: what the other operation takes, or the id of the other record; None if neither.
    """

    def __init__(self, remedy: Remedy = "", value: JsonValue = None) -> None:
        super().__init__(remedy)
        self.remedy, self.value = remedy, value


@dataclass(frozen=True, slots=True)
class Request:
    """What an operation is asked to do.

    Attributes:
        store: holds the record; changed in place.
        id: of the record; empty for an operation on none.
        value: see `Domain`; None for an operation that takes none.
        choices: words of a state of the style `choice`.
    """

    store: Store
    id: str
    value: JsonValue
    choices: Sequence[str]

    @property
    def record(self) -> Record:
        """The record itself."""
        return self.store[self.id]

    @property
    def state(self) -> JsonValue:
        """Its state."""
        return self.record["state"]

    def elsewhere(self, fits: Callable[[JsonValue], bool]) -> RefusedError:
        """A refusal that names a record of the same kind whose state fits, if there is one."""
        same = (id for id, record in self.store.items() if record["kind"] == self.record["kind"] and id != self.id)
        found = next((id for id in same if fits(self.store[id]["state"])), None)
        return RefusedError("elsewhere", found) if found else RefusedError()


Operation = Callable[[Request], None]
"""Changes the store, or raises `RefusedError` and leaves it as it is."""


def _state(request: Request) -> None:
    request.record["state"] = request.value


def _add(request: Request) -> None:
    request.record["state"] += request.value


def _pay(request: Request) -> None:
    if request.value > request.state:
        raise RefusedError("first", request.value - request.state)
    request.record["state"] -= request.value


def _take(request: Request) -> None:
    if request.value > request.state:
        raise request.elsewhere(lambda state: state >= request.value)
    request.record["state"] -= request.value


def _cancel(request: Request) -> None:
    if request.state != request.choices[0]:
        raise RefusedError("instead")
    request.record["state"] = request.choices[2]


def _return(request: Request) -> None:
    if request.state != request.choices[1]:
        raise RefusedError
    request.record["state"] = request.choices[3]


def _book(request: Request) -> None:
    if request.state != FREE:
        raise request.elsewhere(lambda state: state == FREE)
    _state(request)


def _lend(request: Request) -> None:
    if request.state != FREE:
        raise RefusedError("instead", request.value)
    _state(request)


def _queue(request: Request) -> None:
    if request.state == FREE:
        raise RefusedError
    request.record["next"] = request.value


def _move(request: Request) -> None:
    if request.value not in request.store:
        raise RefusedError("first", request.value)
    _state(request)


def _make(request: Request) -> None:
    if request.value in request.store:
        raise RefusedError
    request.store[request.value] = {"kind": ""}


def _close(request: Request) -> None:
    if request.state == FREE:
        raise RefusedError("first", request.record["duty"])
    request.record["closed"] = True


def _set(request: Request) -> None:
    if request.state != request.choices[0]:
        raise RefusedError("first")
    request.record["level"] = request.value


def _start(request: Request) -> None:
    request.record["state"] = request.choices[0]


def _open(request: Request) -> None:
    if request.value != request.state:
        raise RefusedError("look")
    request.record["opened"] = True


def _join(request: Request) -> None:
    if request.state != FREE:
        raise RefusedError("first")
    partner = request.store.get(request.value, {})
    if partner.get("kind") != request.record["kind"] or partner.get("state") != FREE or request.value == request.id:
        raise RefusedError
    request.record["state"], partner["state"] = request.value, request.id


def _part(request: Request) -> None:
    if request.state == FREE:
        raise RefusedError
    request.store[request.state]["state"] = request.record["state"] = FREE


Style = Literal["number", "choice", "free", "held", "place", "code", "pair"]
Takes = Literal["amount", "person", "place", "code", "record", ""]


@dataclass(frozen=True, slots=True)
class Domain:
    """The rules of one kind of records.

    Attributes:
        style: what the state is, and which one lets `act` be: a `number` that is not less than what `act` takes; the
            first of two words, `choice`; nobody, `free`; somebody, `held`; nobody or the id of another record, `pair`;
            a `place`, where `act` needs another one that exists; a `code`, which `act` must be given.
        act: the first operation.
        takes: kind of value that it takes; empty: none.
        other: the second one.
        other_takes: as `takes`.
    """

    style: Style
    act: Operation
    takes: Takes
    other: Operation
    other_takes: Takes

    @property
    def other_is_alone(self) -> bool:
        """The second operation acts on no record."""
        return self.other_takes == "place"


DOMAINS: Mapping[str, Domain] = {
    "accounts": Domain("number", _pay, "amount", _add, "amount"),
    "stock": Domain("number", _take, "amount", _add, "amount"),
    "orders": Domain("choice", _cancel, "", _return, ""),
    "devices": Domain("choice", _set, "amount", _start, ""),
    "slots": Domain("free", _book, "person", _queue, "person"),
    "loans": Domain("free", _lend, "person", _queue, "person"),
    "tickets": Domain("held", _close, "", _state, "person"),
    "files": Domain("place", _move, "place", _make, "place"),
    "lockers": Domain("code", _open, "code", _state, "code"),
    "partners": Domain("pair", _join, "record", _part, ""),
}
