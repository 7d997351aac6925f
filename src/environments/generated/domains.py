"""What kinds of stores there are, and the rules by which they differ.

A record has a name, by which its id is found, and a state, which is read by id. Each domain has two operations that
change its store: `act`, which a rule may forbid, and `other`, which often helps then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        remedy: what to do. `first`: the other operation, then this one again. `instead`: the other operation.
            `elsewhere`: this one with another record. `look`: this one with the state as its value. Empty: nothing.
        value: what the other operation takes, or the id of the other record; None if neither.
    """

    def __init__(self, remedy: Remedy, value: JsonValue) -> None:
        super().__init__(remedy)
        self.remedy, self.value = remedy, value


@dataclass(frozen=True, slots=True)
class Request:
    """What an operation is asked to do.

    Attributes:
        store: holds the record; changed in place.
        id: of the record; empty for an operation on none.
        value: what the operation takes; None for nothing.
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


Takes = Literal["amount", "person", "place", "code", "record", ""]


@dataclass(frozen=True, slots=True)
class Operation:
    """A change of a store, and the rule that may forbid it.

    Attributes:
        takes: kind of value that it takes; empty: none.
        change: of the store.
        fits: whether the rule allows it.
        remedy: see `RefusedError`.
        hint: the value of the refusal; not asked for `elsewhere`.
        alone: it acts on no record.
    """

    takes: Takes
    change: Callable[[Request], None]
    fits: Callable[[Request], bool] = lambda request: True
    remedy: Remedy = ""
    hint: Callable[[Request], JsonValue] = lambda request: None
    alone: bool = False

    def run(self, request: Request) -> None:
        """Change the store.

        Raises:
            RefusedError: the rule forbids it; the store is as it was.
        """
        if self.fits(request):
            self.change(request)
        elif self.remedy == "elsewhere":
            same = (id for id, record in request.store.items() if record["kind"] == request.record["kind"])
            found = next((id for id in same if self.fits(replace(request, id=id))), None)
            raise RefusedError("elsewhere" if found else "", found)
        else:
            raise RefusedError(self.remedy, self.hint(request))


def _put(field: str, value: JsonValue = None) -> Callable[[Request], None]:
    return lambda request: request.record.update({field: request.value if value is None else value})


def _turn(choice: int) -> Callable[[Request], None]:
    return lambda request: request.record.update(state=request.choices[choice])


def _is(choice: int) -> Callable[[Request], bool]:
    return lambda request: request.state == request.choices[choice]


def _add(request: Request) -> None:
    request.record["state"] += request.value


def _subtract(request: Request) -> None:
    request.record["state"] -= request.value


def _make(request: Request) -> None:
    request.store[request.value] = {"kind": ""}


def _join(request: Request) -> None:
    request.record["state"], request.store[request.value]["state"] = request.value, request.id


def _part(request: Request) -> None:
    request.store[request.state]["state"] = request.record["state"] = FREE


def _enough(request: Request) -> bool:
    return bool(request.value <= request.state)


def _free(request: Request) -> bool:
    return bool(request.state == FREE)


def _taken(request: Request) -> bool:
    return not _free(request)


def _exists(request: Request) -> bool:
    return request.store.get(request.value, {}).get("kind") == ""


def _is_new(request: Request) -> bool:
    return request.value not in request.store


def _matching(request: Request) -> bool:
    return bool(request.value == request.state)


def _both_free(request: Request) -> bool:
    partner = request.store.get(request.value, {})
    same = partner.get("kind") == request.record["kind"] and request.value != request.id
    return bool(same and request.state == partner["state"] == FREE)


def _value(request: Request) -> JsonValue:
    return request.value


@dataclass(frozen=True, slots=True)
class Domain:
    """The rules of one kind of records.

    Attributes:
        style: what the state is, and when it allows `act`. `number`: if it is at least what `act` takes. `choice`: one
            of two words, if it is the first. `free` and `held`: a person or nobody, if it is nobody or somebody.
            `pair`: the id of another record or nobody, if it is nobody. `place`: if the place that `act` takes exists.
            `code`: if `act` is given it.
        act: the operation that a rule may forbid.
        other: the operation that helps, or is done in its place.
    """

    style: Literal["number", "choice", "free", "held", "place", "code", "pair"]
    act: Operation
    other: Operation


_queue = Operation("person", _put("next"), _taken)

DOMAINS: Mapping[str, Domain] = {
    "accounts": Domain(
        "number",
        Operation("amount", _subtract, _enough, "first", lambda request: request.value - request.state),
        Operation("amount", _add),
    ),
    "stock": Domain("number", Operation("amount", _subtract, _enough, "elsewhere"), Operation("amount", _add)),
    "orders": Domain("choice", Operation("", _turn(2), _is(0), "instead"), Operation("", _turn(3), _is(1))),
    "devices": Domain("choice", Operation("amount", _put("level"), _is(0), "first"), Operation("", _turn(0))),
    "slots": Domain("free", Operation("person", _put("state"), _free, "elsewhere"), _queue),
    "loans": Domain("free", Operation("person", _put("state"), _free, "instead", _value), _queue),
    "tickets": Domain(
        "held",
        Operation("", _put("closed", True), _taken, "first", lambda request: request.record["duty"]),
        Operation("person", _put("state")),
    ),
    "files": Domain(
        "place",
        Operation("place", _put("state"), _exists, "first", _value),
        Operation("place", _make, _is_new, alone=True),
    ),
    "lockers": Domain(
        "code", Operation("code", _put("opened", True), _matching, "look"), Operation("code", _put("state"))
    ),
    "partners": Domain("pair", Operation("record", _join, _both_free, "first"), Operation("", _part, _taken)),
}
