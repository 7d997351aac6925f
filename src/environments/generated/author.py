"""Writes a task: a store, tools in words of its own, and what the user asks for, with the right play."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from src.data.sources.composed.source import GLUE, Writer
from src.environments.generated.domains import DOMAINS, FREE, RefusedError, Request, Store
from src.environments.generated.scenario import Kind, Role, Scenario, Tool, Turn, calls_of
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec

PHRASINGS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(
    Path(__file__).with_name("phrasings.json").read_text()
)

KINDS = ("chain", "branch", "recover", "several", "follow_up", "refusal", "ask")

_GLUE = set(re.findall(r"[a-z]+", json.dumps(PHRASINGS).lower())) | {word.lower() for word in GLUE}
_ROLES: tuple[Role, ...] = ("find", "look", "act", "other")
_CHANGING: tuple[Role, ...] = ("act", "other")
_TOLD: Mapping[Role, str] = {"find": "id", "look": "state"}
_ERRORS = ("first", "first_with", "instead", "elsewhere", "look", "refused", "missing")
_BRANCHING = ("number", "choice", "free", "held", "pair")


def domains_of(kind: str) -> list[str]:
    """Names of the domains that have tasks of a kind."""
    return [name for name, domain in DOMAINS.items() if kind != "branch" or domain.style in _BRANCHING]


class Author:
    """Writes one scenario with one random generator.

    Args:
        rng: draws everything.
        world: whose words and phrasings are used, `train` or `unseen`.
        domain: a key of `DOMAINS`.
        invented: share of words that are made of random letters.
    """

    def __init__(self, rng: random.Random, world: str, domain: str, invented: float = 0.35) -> None:
        self._rng, self._world = rng, world
        self._words = Writer(rng, world, invented=invented)
        self._store: Store = {}
        self._drawn: set[str] = set()
        self._kind = self._new_kind(domain)
        verb = self._kind.verbs["act"] if rng.random() < 0.3 else None
        self._distractor = self._new_kind(rng.choice([name for name in DOMAINS if name != domain]), verb)
        tools = [self._tool(kind, role) for kind in (self._kind, self._distractor) for role in _ROLES]
        self._tools = {tool.spec.name: tool for tool in tools}

    def write(self, kind: str) -> Scenario:
        """A scenario of one of `KINDS`."""
        for each, count in ((self._kind, self._rng.choice((0, 1))), (self._distractor, 1)):
            for _ in range(count):
                self._add(each, blocked=self._rng.random() < 0.5)
        turns: tuple[Turn, ...] = getattr(self, f"_{kind}")()
        errors = {key: self._phrase(key) for key in _ERRORS}
        return Scenario(self._offered(turns, kind), self._store, turns, errors, self._phrase("done"))

    def _chain(self) -> tuple[Turn, ...]:
        kind, style = self._kind, self._kind.domain.style
        variant = self._rng.choice(("look", "act", "copy" if style in ("number", "code") else "act"))
        if variant == "look":
            id = self._add(kind, blocked=self._is_taken_style())
            return (self._asked("state", id),)
        id = self._add(kind)
        finds = [self._find(id)]
        if variant == "copy":
            value = self._store[id]["state"]
            clause = self._clause("act", self._thing(id)) + self._phrase("copies").format(state=kind.labels["state"])
            steps = [finds, [self._call("look", id)], [self._call("act", id, value)]]
        else:
            said = value = self._value("act", id)
            if style == "pair":
                finds.append(self._find(value))
                said = self._store[value]["name"]
            clause = self._clause("act", self._thing(id), said)
            steps = [finds, [self._call("act", id, value)]]
        return (self._turn(self._say(clause), steps),)

    def _branch(self) -> tuple[Turn, ...]:
        kind, style, rng = self._kind, self._kind.domain.style, self._rng
        is_act, named = rng.random() < 0.5, rng.random() < 0.5
        id = self._add(kind, blocked=not is_act and style != "number")
        values = {role: self._value(role, id) for role in _CHANGING}
        clauses = [self._clause(role, "it", values[role]) for role in _CHANGING]
        calls = [self._call(role, id, values[role]) for role in _CHANGING]
        right, wrong = calls if is_act else reversed(calls)
        wording, expected, state = "branches", FREE, self._store[id]["state"]
        if style == "number":
            wording, expected = "thresholds", state - rng.randrange(10) if is_act else state + rng.randrange(1, 10)
        elif style == "choice":
            expected = rng.choice(kind.choices[:2])
        if style == "held" or expected in kind.choices[1:]:
            clauses.reverse()
        texts = {"state": kind.labels["state"], "thing": self._thing(id, named), "value": expected}
        text = self._phrase(wording).format(**texts, yes=clauses[0], no=clauses[1])
        finds = [[self._find(id)]] if named else []
        turn = self._turn(self._open(text), [*finds, [self._call("look", id)], [right]])
        return (replace(turn, slip=self._steps([*finds, [wrong]])),)

    def _recover(self) -> tuple[Turn, ...]:
        kind = self._kind
        id = self._add(kind, blocked=True)
        value = self._value("act", id, blocked=True)
        refused = self._refused(id, value)
        if refused.remedy == "" and kind.domain.style in ("number", "free"):
            another = self._add(kind)
            if kind.domain.style == "number":
                self._store[another]["state"] = value + self._rng.randrange(1, 10)
            refused = self._refused(id, value)
        named = refused.remedy != "first" and self._rng.random() < 0.5
        steps = [[self._find(id)]] if named else []
        steps.append([self._call("act", id, value)])
        if refused.remedy == "first":
            steps += [[self._call("other", id, refused.value)], [self._call("act", id, value)]]
        elif refused.remedy == "instead":
            steps.append([self._call("other", id, value)])
        elif refused.remedy == "elsewhere":
            steps.append([self._call("act", refused.value, value)])
        else:
            steps += [[self._call("look", id)], [self._call("act", id, self._store[id]["state"])]]
        clause = self._clause("act", self._thing(id, named), value)
        if refused.remedy == "elsewhere":
            clause += self._phrase("or")
        return (self._turn(self._say(clause), steps),)

    def _several(self) -> tuple[Turn, ...]:
        kind = self._kind
        variant = self._rng.choice(("look", "same", "different"))
        if variant == "look":
            ids = [self._add(kind, blocked=self._is_taken_style()) for _ in range(2)]
            label = kind.labels["state"]
            both = " and ".join(self._thing(id, named=False) for id in ids)
            states = [str(self._store[id]["state"]) for id in ids]
            words = " ".join(self._words.phrase("answers").format(label=label, value=state) for state in states)
            text = self._phrase("asks").format(label=label, thing=both)
            calls = [self._call("look", id) for id in ids]
            return (self._turn(self._open(text), [calls], words, states),)
        clauses, calls = [], []
        for role in ("act", "act" if variant == "same" else "other"):
            id = self._add(kind, blocked=role == "other")
            value = self._value(role, id)
            clauses.append(self._clause(role, self._thing(id, named=False), value))
            calls.append(self._call(role, id, value))
        return (self._turn(self._say(self._words.phrase("joins").join(clauses)), [calls]),)

    def _follow_up(self) -> tuple[Turn, ...]:
        taken = self._is_taken_style()
        id = self._add(self._kind, blocked=taken)
        role: Role = "other" if taken else "act"
        first = self._asked(self._rng.choice(("id", "state")), id)
        value = self._value(role, id)
        text = self._phrase("follow").format(clause=self._clause(role, "it", value))
        return first, self._turn(text, [[self._call(role, id, value)]])

    def _refusal(self) -> tuple[Turn, ...]:
        id, named = self._add(self._kind, blocked=True), self._rng.random() < 0.5
        clause = self._clause("act", self._thing(id, named), self._value("act", id))
        thought = f"{self._kind.verbs['act']} {self._kind.noun}: none."
        finds = [[self._find(id)]] if named and not self._kind.domain.other.alone else []
        slip = self._steps([*finds, [self._call("other", id, self._value("other", id))]])
        return (Turn(self._say(clause), (Message("assistant", self._words.phrase("refusals"), thought),), slip=slip),)

    def _ask(self) -> tuple[Turn, ...]:
        kind = self._kind
        id = self._add(kind)
        value = self._value("act", id)
        if kind.domain.act.takes not in ("", "code"):  # a code could be looked up
            label, reply, named, wrong = kind.labels["act"], value, self._rng.random() < 0.5, value
            clause = self._clause("act", self._thing(id, named))
            while wrong == value:
                wrong = self._value("act", id)
            slip = self._call("act", id, wrong)
        else:
            label, reply, named = kind.labels["id"], id, False
            clause = self._clause("act", self._phrase("things").format(thing=kind.noun), value)
            slip = self._call("act", self._add(kind), value)
        finds = [[self._find(id)]] if named else []
        thought = f"{kind.verbs['act']} {kind.noun}: {self._name('act')} without {label}."
        question = Message("assistant", self._words.phrase("questions").format(label=label), thought)
        asked = Turn(self._say(clause), (question,), (label,), slip=self._steps([*finds, [slip]]))
        said = self._words.phrase("replies").format(label=label, value=reply)
        return asked, self._turn(said, [*finds, [self._call("act", id, value)]])

    def _asked(self, what: str, id: str) -> Turn:
        """A turn that asks for the id or the state of a record that is called by its name."""
        label = self._kind.labels[what]
        value = id if what == "id" else str(self._store[id]["state"])
        steps = [[self._find(id)]] + ([[self._call("look", id)]] if what == "state" else [])
        text = self._phrase("asks").format(label=label, thing=self._thing(id))
        words = self._words.phrase("answers").format(label=label, value=value)
        return self._turn(self._open(text), steps, words, (value,))

    def _turn(
        self, user: str, steps: Sequence[Sequence[ToolCall]], words: str = "", wanted: Sequence[str] = ()
    ) -> Turn:
        """A turn of steps with calls and, without words of its own, one that says that it is done."""
        said = Message("assistant", words or self._phrase("done"), "that answers it." if wanted else "done.")
        rivals = [word for word in self._kind.choices if wanted and word not in wanted]
        return Turn(user, (*self._steps(steps), said), tuple(wanted), tuple(rivals))

    def _steps(self, steps: Sequence[Sequence[ToolCall]]) -> tuple[Message, ...]:
        """Steps with calls, each with a thought of what they are for."""
        return tuple(
            Message("assistant", thought="; ".join(map(self._purpose, calls)) + ".", calls=tuple(calls))
            for calls in steps
        )

    def _purpose(self, call: ToolCall) -> str:
        kind, role = self._tools[call.name].kind, self._tools[call.name].role
        verb = kind.verbs.get(role) or f"{kind.labels[_TOLD[role]]} of"
        return f"{verb} {kind.noun}: {call.name}"

    def _offered(self, turns: Sequence[Turn], kind: str) -> dict[str, Tool]:
        """The tools that are needed among others, in random order."""
        needed = {call.name for turn in turns for call in calls_of((*turn.steps, *turn.slip))}
        unfit = self._name("act") if kind == "refusal" else ""
        others = [name for name in self._tools if name not in needed and name != unfit]
        count = max(len(needed), self._rng.choice((2, 3, 4, 4, 5)))
        names = sorted(needed) + self._rng.sample(others, count - len(needed))
        self._rng.shuffle(names)
        return {name: self._tools[name] for name in names}

    def _phrase(self, key: str) -> str:
        return self._rng.choice(PHRASINGS[self._world][key])

    def _open(self, text: str) -> str:
        return f"{self._words.phrase('openings')}{text}."

    def _say(self, clause: str) -> str:
        return self._open(self._words.phrase("leads") + clause)

    def _clause(self, role: Role, thing: str, value: JsonValue = None) -> str:
        """What the user wants done, in an imperative."""
        kind = self._kind
        if role == "other" and kind.domain.other.alone:
            return f"{kind.verbs[role]} {kind.labels[role]} {value}"
        stated = "" if value is None else self._phrase("values").format(label=kind.labels[role], value=value)
        return f"{kind.verbs[role]} {thing}{stated}"

    def _thing(self, id: str, named: bool = True) -> str:
        noun = self._kind.noun
        called = self._store[id]["name"] if named else f"{self._kind.labels['id']} {id}"
        return self._phrase("things").format(thing=f"{noun} {called}")

    def _find(self, id: str) -> ToolCall:
        return ToolCall(self._name("find"), {self._kind.labels["name"]: self._store[id]["name"]})

    def _call(self, role: Role, id: str, value: JsonValue = None) -> ToolCall:
        keys = self._kind.keys(role)
        values = [value] if role == "other" and self._kind.domain.other.alone else [id, value]
        return ToolCall(self._name(role), dict(zip(keys, values, strict=False)))

    def _name(self, role: Role) -> str:
        return next(name for name, tool in self._tools.items() if tool.kind is self._kind and tool.role == role)

    def _refused(self, id: str, value: JsonValue) -> RefusedError:
        try:
            self._kind.domain.act.run(Request(self._store, id, value, self._kind.choices))
        except RefusedError as refused:
            return refused
        raise AssertionError(f"{self._kind.domain} allows {value!r}.")

    def _is_taken_style(self) -> bool:
        """Whether only a blocked record has a state that is worth asking for."""
        return self._kind.domain.style in ("free", "pair")

    def _add(self, kind: Kind, blocked: bool = False) -> str:
        """Add a record whose state allows or, if `blocked`, forbids `act`; its id."""
        rng, style = self._rng, kind.domain.style
        id = self._new(lambda: f"{rng.choice('bcdfghjkmnpqrtvwxz')}{rng.randrange(10, 100)}")
        record = self._store[id] = {"kind": kind.noun, "name": self._person()}
        if style == "number":
            record["state"] = rng.randrange(20, 90)
        elif style == "choice":
            record["state"] = kind.choices[blocked]
        elif style == "place":
            record["state"] = rng.choice(self._places())
        elif style == "code":
            record["state"] = self._code()
        elif style == "pair" and blocked:
            record["state"] = partner = self._add(kind)
            self._store[partner]["state"] = id
        else:
            record["state"] = FREE if blocked == (style == "held") else self._person()
        if style == "held":
            record["duty"] = self._person()
        return id

    def _value(self, role: Role, id: str, blocked: bool = False) -> JsonValue:
        """A value with which an operation is allowed or, if `blocked`, forbidden; None if it takes none."""
        rng, domain, state = self._rng, self._kind.domain, self._store[id]["state"]
        takes = self._kind.operation(role).takes
        if takes == "amount":
            if role == "act" and domain.style == "number":
                return state + rng.randrange(1, 20) if blocked else rng.randrange(2, state)
            return rng.randrange(2, 100)
        if takes == "person":
            return self._person()
        if takes == "place":
            new = role == "other" or blocked
            return self._person() if new else rng.choice([place for place in self._places() if place != state])
        if takes == "code":
            return self._code() if role == "other" or blocked else state
        return self._add(self._kind) if takes else None

    def _places(self) -> list[str]:
        while len(places := [id for id, record in self._store.items() if not record["kind"]]) < 3:
            self._store[self._person()] = {"kind": ""}
        return places

    def _person(self) -> str:
        return self._new(lambda: self._words.invent().title())

    def _code(self) -> str:
        return self._new(lambda: f"{self._words.invent()[:2]}{self._rng.randrange(100, 1000)}")

    def _new(self, draw: Callable[[], str]) -> str:
        """Draw until the result is new and is no word of the phrasings."""
        while (drawn := draw()) in self._drawn or drawn.lower() in _GLUE:
            continue
        self._drawn.add(drawn)
        return drawn

    def _word(self, role: str) -> str:
        return self._new(lambda: self._words.word(role))

    def _new_kind(self, domain: str, verb: str | None = None) -> Kind:
        labels = {key: self._word("attributes") for key in ("id", "name", "state", "act", "other")}
        choices = [self._word("choices") for _ in range(4 if DOMAINS[domain].style == "choice" else 0)]
        verbs = {"act": verb or self._word("verbs"), "other": self._word("verbs")}
        return Kind(DOMAINS[domain], self._word("nouns"), labels, tuple(choices), verbs)

    def _tool(self, kind: Kind, role: Role) -> Tool:
        style, label = self._rng.random(), kind.labels[_TOLD.get(role, role)]
        verb = kind.verbs.get(role, label)
        name = f"{verb}_{kind.noun}" if style < 0.2 else f"{kind.noun}_{verb}" if style < 0.4 else self._word("nouns")
        if style > 0.7:
            name += f"_{self._word('nouns')}"
        if role in ("find", "look"):
            description = self._phrase(f"{role}s").format(noun=kind.noun, **kind.labels)
        else:
            noun = self._phrase("things").format(thing=kind.noun)
            description = f"{self._words.phrase('purposes')}{verb} {noun}{self._words.phrase('ends')}"
        keys = kind.keys(role)
        properties = {key: {"type": "string"} for key in keys}
        if role in kind.verbs and kind.operation(role).takes == "amount":
            properties[label] = {"type": "integer"}
        schema = {"type": "object", "properties": properties, "required": list(keys)}
        return Tool(ToolSpec({"name": name, "description": description, "parameters": schema}), kind, role)
