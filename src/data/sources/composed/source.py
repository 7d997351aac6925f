"""A corpus whose tools are composed at random for every prompt, so that a policy has to read them.

Names, purposes, parameters and values are drawn from hundreds of words and any number of invented ones. A name may say
what its tool does (`book_boat`) or nothing (`tar_velomi`): then only the description tells. Distractors share the verb
or the noun of the right tool. Three splits: `train`; `val`, new compositions of the same words; `val_unseen`, whose
words and phrasings never occur in `train`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from src.data.sources.base import generated_split, generator_splits, kind_shares
from src.protocol.dialogue import Dialogue, JsonValue, Message, ToolCall, ToolSpec, TurnExample, split_turns

KINDS: dict[str, float] = {
    "single": 0.5,
    "parallel_same": 0.12,
    "parallel_different": 0.14,
    "refusal": 0.12,
    "ask": 0.12,
}
"""Kinds of dialogues and their default share."""

WORDS = json.loads((Path(__file__).parent / "words.json").read_text())
PHRASINGS: Mapping[str, Mapping[str, Sequence[str]]] = WORDS["phrasings"]

_TEXTS = {world: " ".join(chain(*phrasings.values())) for world, phrasings in PHRASINGS.items()}
_WORD = re.compile(r"(?<![{\w])[A-Za-z]+(?![}\w])")
GLUE = frozenset(_WORD.findall(" ".join(_TEXTS.values())))
"""Words of the phrasings: no tool and no value is called so."""

TRAINING_GLUE = frozenset(_WORD.findall(_TEXTS["train"]))
"""Those of training's."""

_GLUE = sorted(TRAINING_GLUE)

_VOWELS = (*"aaaaeeeeeiiiooooouu", "ea", "oo", "ou", "ai", "ee")
_STARTS = (*"bbbcccddffgghhhjkllllmmmnnpppprrrsssstttvwwyz", "st", "sh", "ch", "tr", "gr", "br", "pl", "cl", "sp", "th")
_ENDS = (*"bdddgkkllllmmnnnnnppprrrrsssttttxy", "nd", "ck", "rt", "st", "ll", "ss", "ng", "th")


@dataclass(frozen=True, slots=True)
class Habits:
    """How often an imperfect demonstrator goes wrong, as real models do; each is a probability.

    Attributes:
        stop_after_first: several calls asked for, only the first is made.
        fill_optional: a call gets an optional parameter that nobody asked for.
        call_anyway: no tool fits, one is called all the same.
        invent_value: a value is missing, it is made up.
    """

    stop_after_first: float = 0.65
    fill_optional: float = 0.4
    call_anyway: float = 0.65
    invent_value: float = 0.65


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool, what it does in two words, and the word by which requests name each parameter."""

    spec: ToolSpec
    verb: str
    noun: str
    labels: Mapping[str, str]


class ComposedSource:
    """Generates the splits; the same arguments always give the same examples."""

    name = "composed"

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 300,
        seed: int = 0,
        kinds: Mapping[str, float] | None = None,
        habits: Habits | None = None,
        tools: tuple[int, int] = (3, 5),
        invented: float = 0.35,
        noise: float = 0.3,
    ) -> None:
        """Configure the generator.

        Args:
            num_train: examples (turns) of the `train` split.
            num_val: examples of `val` and of `val_unseen`.
            seed: of the generator.
            kinds: share of each kind of dialogue; default `KINDS`.
            habits: train targets of an imperfect demonstrator with these; None is an expert. Validation targets are
                always the expert's.
            tools: least and most tools of a training prompt; validation prompts have three to five.
            invented: share of words that are made of random letters.
            noise: mean share of a training prompt's phrasings in which some words are others or mean nothing, so that
                they are not learnt by heart; two of five prompts have none, one of five has it everywhere.

        Raises:
            ConfigError: a count below 1, or an unknown kind.
        """
        self._counts, self._kinds = generator_splits(num_train, num_val), kind_shares(kinds, KINDS)
        self._seed, self._habits, self._tools = seed, habits, tools
        self._invented, self._noise = invented, noise

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, `train` first."""
        return tuple(self._counts)

    def load(self, split: str) -> list[TurnExample]:
        """Generate one split.

        Raises:
            ValueError: unknown split.
        """
        return generated_split(self._counts, split, self.stream)

    def stream(self, split: str) -> Iterator[TurnExample]:
        """The endless sequence of which `load` returns the beginning."""
        world = "unseen" if split == "val_unseen" else "train"
        tools = self._tools if split == "train" else (3, 5)
        index = -1
        while True:
            index += 1
            rng = random.Random(f"{self._seed}/{split}/{index}")
            writer = Writer(rng, world, tools, self._invented, self._noise if split == "train" else 0.0)
            (kind,) = rng.choices(list(self._kinds), weights=list(self._kinds.values()))
            dialogue, tags = writer.write(kind, f"{split}/{index}")
            if world == "train" and _held_out(dialogue.messages[0].text, 0.1) != (split == "val"):
                continue
            for example, tag in zip(split_turns(dialogue), tags, strict=True):
                expert = replace(example, tags=(tag,))
                yield imperfect(expert, dialogue, self._habits, rng) if self._habits and split == "train" else expert


def imperfect(example: TurnExample, dialogue: Dialogue, habits: Habits, rng: random.Random) -> TurnExample:
    """The same step of a dialogue as an imperfect demonstrator would take it."""
    target, tag = example.target, example.tags[0]
    purpose, _, plan = target.thought.partition(": ")
    calls, thought = target.calls, target.thought
    if len(calls) > 1 and rng.random() < habits.stop_after_first:
        calls, thought = calls[:1], f"{purpose}: {calls[0].name}."
    elif tag == "ask" and rng.random() < habits.invent_value:
        name, _, label = plan.removesuffix(".").partition(" without ")
        (call,) = next(message.calls for message in dialogue.messages[2:] if message.calls)
        (tool,) = (tool for tool in example.tools if tool.name == name)
        key = next(key for key, about in tool.parameters.items() if label in (key, about.get("description")))
        calls = (replace(call, parameters={**call.parameters, key: Writer(rng).value(tool.parameters[key])}),)
        thought = f"{purpose}: {name}."
    elif tag == "refusal" and rng.random() < habits.call_anyway:
        tool = rng.choice(example.tools)
        calls = (ToolCall(tool.name, {key: Writer(rng).value(tool.parameters[key]) for key in tool.required}),)
        thought = f"{purpose}: {tool.name}."
    if calls and tag not in ("refusal", "ask") and rng.random() < habits.fill_optional:
        calls = (_filled(calls[0], example.tools, rng), *calls[1:])
    text = "" if calls else target.text
    return replace(example, target=replace(target, calls=calls, thought=thought, text=text))


def _filled(call: ToolCall, tools: Sequence[ToolSpec], rng: random.Random) -> ToolCall:
    """The call with an optional parameter more, if its tool has one left: its default, else an invented value."""
    (tool,) = (tool for tool in tools if tool.name == call.name)
    key = next((key for key in tool.parameters if key not in call.parameters), None)
    if key is None:
        return call
    about = tool.parameters[key]
    return replace(call, parameters={**call.parameters, key: about.get("default", Writer(rng).value(about))})


def invented_result(call: ToolCall) -> dict[str, JsonValue]:
    """What a tool of the corpus answers: a word and a value, always the same for the same call."""
    writer = Writer(random.Random(f"{call.name} {json.dumps(call.parameters, sort_keys=True)}"))
    return {writer.word("attributes"): writer.value({"type": "string"})}


class Writer:
    """Writes one dialogue with one random generator; `world` chooses its words and phrasings."""

    def __init__(
        self,
        rng: random.Random,
        world: str = "train",
        tools: tuple[int, int] = (3, 5),
        invented: float = 0.35,
        noise: float = 0.0,
    ) -> None:
        self._rng, self._world, self._range, self._invented = rng, world, tools, invented
        self._noise = noise * rng.choice((0.0, 0.0, 0.5, 1.0, 3.5))
        self._fillers = [self.invent() for _ in range(rng.choice((1, 2, 4, 8)))] if self._noise else []
        self._taken = set(self._fillers)

    def write(self, kind: str, id: str) -> tuple[Dialogue, list[str]]:
        """The dialogue and the tag of each assistant step."""
        tools = self._toolbox(with_required=kind == "ask")
        first, other = tools[0], tools[1]
        if kind == "parallel_different":
            requests = [self._request(first), self._request(other)]
        elif kind == "parallel_same":
            requests = [self._request(first), self._request(first, again=True)]
        elif kind == "ask":
            return self._asking(tools, id)
        else:
            requests = [self._request(first)]
        question = self._say(self._said("joins").join(clause for clause, _ in requests))
        if kind == "refusal":
            step = Message("assistant", self.phrase("refusals"), f"{first.verb} {first.noun}: none.")
            return self._dialogue(tools[1:], (question, step), id), ["refusal"]
        calls = tuple(call for _, call in requests)
        wanted = [first, other] if kind == "parallel_different" else [first]
        plan = "; ".join(f"{tool.verb} {tool.noun}: {tool.spec.name}" for tool in wanted)
        step = Message("assistant", thought=plan + (" twice." if kind == "parallel_same" else "."), calls=calls)
        if kind != "single" or self._rng.random() > 0.15:
            return self._dialogue(tools, (question, step), id), [kind]
        label, value = self.word("attributes"), self.value({"type": "string"})
        answer = Message("assistant", self.phrase("answers").format(label=label, value=value), "that answers it.")
        seen = Message("observation", json.dumps({label: value}))
        return self._dialogue(tools, (question, step, seen, answer), id), [kind, "answer"]

    def _asking(self, tools: list[_Tool], id: str) -> tuple[Dialogue, list[str]]:
        tool = tools[0]
        missing = tool.spec.required[-1]
        clause, call = self._request(tool, without=missing)
        label, value = tool.labels[missing], self.value(tool.spec.parameters[missing])
        plan = f"{tool.verb} {tool.noun}: {tool.spec.name}"
        asked = Message("assistant", self.phrase("questions").format(label=label), f"{plan} without {label}.")
        reply = Message("user", self._said("replies", beside=value).format(label=label, value=_spoken(value)))
        whole = {key: value if key == missing else call.parameters.get(key) for key in tool.spec.parameters}
        complete = ToolCall(call.name, {key: one for key, one in whole.items() if one is not None})
        step = Message("assistant", thought=f"{plan}.", calls=(complete,))
        return self._dialogue(tools, (self._say(clause), asked, reply, step), id), ["ask", "after_ask"]

    def _dialogue(self, tools: Sequence[_Tool], messages: tuple[Message, ...], id: str) -> Dialogue:
        offered = [tool.spec for tool in tools]
        self._rng.shuffle(offered)
        return Dialogue(tuple(offered), messages, ComposedSource.name, id)

    def _say(self, clause: str) -> Message:
        return Message("user", f"{self._said('openings')}{self._said('leads')}{clause}.")

    def _request(self, tool: _Tool, *, again: bool = False, without: str = "") -> tuple[str, ToolCall]:
        """A clause that asks for a call, and the call; `again` says it of the tool of the clause before."""
        values = {
            key: self.value(about)
            for key, about in tool.spec.parameters.items()
            if key != without and (key in tool.spec.required or self._rng.random() < 0.4)
        }
        clause = self._purpose(tool.verb, "one" if again else tool.noun)
        for index, (key, value) in enumerate(values.items()):
            main = index == 0 and key == next(iter(tool.spec.parameters)) and isinstance(value, str)
            unlabelled = main and "enum" not in tool.spec.parameters[key] and self._rng.random() < 0.5
            if unlabelled:
                clause += self._said("mains", beside=value) + _spoken(value)
            else:
                clause += self._stated(tool.labels[key], value)
        return clause, ToolCall(tool.spec.name, values)

    def _stated(self, label: str, value: JsonValue) -> str:
        if self._rng.random() < 0.35:
            separator, role = (self._said(key, beside=value) for key in ("separators", "roles"))
            return separator + _spoken(value) + role + label
        separator, owner, link = self._said("separators"), self._said("owners"), self._said("links", beside=value)
        return separator + owner + label + link + _spoken(value)

    def _purpose(self, verb: str, noun: str) -> str:
        return f"{verb} {self._said('articles')} {noun}"

    def _toolbox(self, *, with_required: bool) -> list[_Tool]:
        """Tools of one prompt: the first is the right one, the next ones like it share its verb or its noun."""
        verb, noun = self.word("verbs"), self.word("nouns")
        tools = [self._tool(verb, noun, with_required)]
        for _ in range(self._rng.randint(*self._range) - 1):
            like = self._rng.random()
            tools.append(
                self._tool(
                    verb if like < 0.2 else self.word("verbs"), noun if 0.2 <= like < 0.4 else self.word("nouns")
                )
            )
        return tools

    def _tool(self, verb: str, noun: str, with_required: bool = False) -> _Tool:
        style = self._rng.random()
        name = f"{verb}_{noun}" if style < 0.3 else f"{noun}_{verb}" if style < 0.4 else self.word("nouns")
        if style > 0.6:
            name += f"_{self.word('nouns')}"
        count = self._rng.choice((1, 2, 2, 3))
        keys = [self.word("attributes") for _ in range(count)]
        required = [index == 0 or self._rng.random() < 0.5 for index in range(count)]
        if not with_required and count > 1 and self._rng.random() < 0.1:
            required[0] = False
        parameters: dict[str, JsonValue] = {}
        labels = {}
        for key, needed in zip(keys, required, strict=True):
            parameters[key] = about = self._schema()
            labels[key] = key
            if self._rng.random() < 0.25:
                labels[key] = about["description"] = self.word("attributes")
            if not needed and self._rng.random() < 0.5:
                about["default"] = self.value(about)
        needed_keys = [key for key, needed in zip(keys, required, strict=True) if needed]
        schema = {"type": "object", "properties": parameters, "required": needed_keys}
        description = self._said("purposes") + self._purpose(verb, noun) + self._said("ends")
        return _Tool(ToolSpec({"name": name, "description": description, "parameters": schema}), verb, noun, labels)

    def _schema(self) -> dict[str, JsonValue]:
        kinds = ("string", "integer", "number", "boolean", "enum")
        (kind,) = self._rng.choices(kinds, weights=(45, 20, 8, 10, 17))
        if kind == "enum":
            return {"type": "string", "enum": [self.word("choices") for _ in range(self._rng.choice((2, 3)))]}
        return {"type": kind}

    def value(self, about: Mapping[str, JsonValue]) -> JsonValue:
        """A value that a parameter's schema allows."""
        rng = self._rng
        if "enum" in about:
            return rng.choice(about["enum"])
        if about["type"] == "integer":
            return rng.randrange(2, rng.choice((10, 100, 1000)))
        if about["type"] == "number":
            return rng.randrange(1, 100) + rng.choice((0.25, 0.5, 0.75))
        if about["type"] == "boolean":
            return rng.random() < 0.5
        style = rng.random()
        if style < 0.2:
            return self.invent()[:2] + str(rng.randrange(10, 1000))
        words = [self.invent() for _ in range(1 if style < 0.75 else 2)]
        return " ".join(words) if style < 0.4 else " ".join(words).title()

    def phrase(self, key: str) -> str:
        """A phrasing of the kind, without noise."""
        return self._rng.choice(PHRASINGS[self._world][key])

    def _said(self, key: str, beside: JsonValue = None) -> str:
        """A phrasing of the user's or of a tool, maybe with noise; not beside a value that a word more would change."""
        phrase = self.phrase(key)
        plain = isinstance(beside, str) and beside.replace(" ", "").isalpha() and beside.islower()
        if plain or self._rng.random() >= self._noise:
            return phrase
        return _WORD.sub(lambda word: self._noised(word[0]), phrase)

    def _noised(self, word: str) -> str:
        draw = self._rng.random()
        if draw < 0.45:
            return self._rng.choice(self._fillers)
        return self._rng.choice(_GLUE) if draw < 0.65 else word

    def word(self, role: str) -> str:
        """A word that this dialogue has not had: one of its role, or an invented one."""
        while True:
            word = self.invent() if self._rng.random() < self._invented else self._rng.choice(_WORDS[self._world, role])
            if word not in self._taken:
                self._taken.add(word)
                return word

    def invent(self) -> str:
        """Random letters in an order that can be pronounced."""
        while True:
            parts = []
            for _ in range(self._rng.choice((1, 2, 2, 3))):
                start, vowel, end = (self._rng.choice(letters) for letters in (_STARTS, _VOWELS, _ENDS))
                parts.append(self._rng.choice((start + vowel, start + vowel, start + vowel + end, vowel + end)))
            word = "".join(parts)
            if len(word) > 2 and word not in GLUE and is_held_out_word(word) == (self._world == "unseen"):
                return word


def is_held_out_word(word: str) -> bool:
    """Whether a word, of a list or invented, belongs to `val_unseen` alone: a fifth of all."""
    return _held_out(word.lower(), 0.2)


def _held_out(text: str, share: float) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] < 256 * share


def _spoken(value: JsonValue) -> str:
    """A value as a request says it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


_WORDS = {
    (world, role): [
        word for word in WORDS[role].split() if word not in GLUE and is_held_out_word(word) == (world == "unseen")
    ]
    for world in ("train", "unseen")
    for role in ("verbs", "nouns", "attributes", "choices")
}
