"""The embedded corpus: a seeded generator of multi-turn tool dialogues over the domains in `domains`.

Values are open-vocabulary (invented names, codes, numbers), so that a policy has to copy them from the prompt. Three
splits: `train`; `val`, whose dialogues share tools and phrasings with `train` but no request; `val_unseen`, whose
tools, names and phrasings never occur in `train`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from src.data.sources.base import generated_split, generator_splits, kind_shares
from src.data.sources.synthetic.domains import TRAINING_DOMAINS, UNSEEN_DOMAINS, WORDS, SyntheticTool
from src.data.sources.synthetic.thoughts import (
    Reasoning,
    answer_thought,
    call_thought,
    long_thought,
    missing_thought,
    refusal_thought,
)
from src.errors import ConfigError
from src.protocol.dialogue import Dialogue, JsonValue, Message, ToolCall, ToolSpec, TurnExample, split_turns

KINDS: dict[str, float] = WORDS["kinds"]
"""Kinds of dialogues and their default share."""

_SYLLABLES = {world: syllables.split() for world, syllables in WORDS["syllables"].items()}


@dataclass(frozen=True, slots=True)
class Habits:
    """How often an imperfect demonstrator goes wrong; each is a probability.

    Attributes:
        stop_after_first: several calls asked for, only the first is made.
        promise_instead: one call asked for, answered in words.
        call_anyway: no tool fits, one is called all the same.
        invent_value: a value is missing, it is made up.
    """

    stop_after_first: float = 0.65
    promise_instead: float = 0.35
    call_anyway: float = 0.65
    invent_value: float = 0.65


@dataclass(frozen=True, slots=True)
class _Request:
    """A tool, its arguments and the clause that asks for it."""

    tool: SyntheticTool
    call: ToolCall
    clause: str


class SyntheticSource:
    """Generates the splits; the same arguments always give the same examples."""

    name = "synthetic"

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 300,
        seed: int = 0,
        kinds: Mapping[str, float] | None = None,
        habits: Habits | None = None,
        reasoning: Reasoning = "brief",
    ) -> None:
        """Configure the generator.

        Args:
            num_train: examples (turns) of the `train` split.
            num_val: examples of `val` and of `val_unseen`.
            seed: of the generator.
            kinds: share of each kind of dialogue; default `KINDS`.
            habits: train targets of an imperfect demonstrator with these; None is an expert. Validation targets are
                always the expert's.
            reasoning: how much the assistant thinks before a step: `brief`, a few words, or `long`, several times the
                length of the calls. Nothing else differs.

        Raises:
            ValueError: a count below 1, an unknown kind or an unknown reasoning.
        """
        self._counts, self._kinds = generator_splits(num_train, num_val), kind_shares(kinds, KINDS)
        if reasoning not in get_args(Reasoning):
            raise ConfigError(
                f"data.train.reasoning: expected one of {list(get_args(Reasoning))}, found {reasoning!r}."
            )
        self._seed = seed
        self._habits = habits
        self._reasoning = reasoning

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
        for dialogue, _, tags, rng in self._written(split):
            for example, tag in zip(split_turns(dialogue), tags, strict=True):
                expert = replace(example, tags=(tag,))
                step = imperfect(expert, self._habits, rng) if self._habits and split == "train" else expert
                if self._reasoning == "long":  # from a generator of its own: the steps stay those of `brief`
                    thought = long_thought(step, dialogue, random.Random(f"{self._seed}/{step.id}/thought"))
                    step = replace(step, target=replace(step.target, thought=thought))
                yield step

    def dialogues(self, split: str) -> Iterator[tuple[Dialogue, str]]:
        """The expert's whole dialogues behind `stream`, endless, each with its kind (a key of `KINDS`)."""
        for dialogue, kind, _, _ in self._written(split):
            yield dialogue, kind

    def _written(self, split: str) -> Iterator[tuple[Dialogue, str, list[str], random.Random]]:
        """Dialogues, their kind, the tag of each assistant step, and the generator that wrote them."""
        index = 0
        while True:
            rng = random.Random(f"{self._seed}/{split}/{index}")
            writer = _DialogueWriter(rng, "unseen" if split == "val_unseen" else "train")
            (kind,) = rng.choices(list(self._kinds), weights=list(self._kinds.values()))
            messages, tools, tags = writer.write(kind)
            index += 1
            if split != "val_unseen" and _is_held_out(messages[0].text) != (split == "val"):
                continue
            yield Dialogue(tools, messages, self.name, f"{split}/{index - 1}"), kind, tags, rng


def execute(call: ToolCall, domains: Mapping[str, Sequence[SyntheticTool]]) -> dict[str, JsonValue]:
    """What a synthetic tool reports: invented, but always the same for the same call.

    Raises:
        KeyError: no such tool in `domains`.
    """
    tools = {tool.name: tool for group in domains.values() for tool in group}
    rng = random.Random(json.dumps([call.name, dict(call.parameters)], sort_keys=True))
    return {key: _value(kind, rng, "train") for key, kind in tools[call.name].returns.items()}


def observation(results: Sequence[JsonValue]) -> str:
    """Results of a step's calls as the policy reads them: that of a single call without a list around it.

    >>> observation([{"sky": "sunny"}]), observation([1, 2])
    ('{"sky": "sunny"}', '[1, 2]')
    """
    return json.dumps(results[0] if len(results) == 1 else results)


def imperfect(example: TurnExample, habits: Habits, rng: random.Random) -> TurnExample:
    """The same step as an imperfect demonstrator would take it."""
    target, tag = example.target, example.tags[0]
    if len(target.calls) > 1 and rng.random() < habits.stop_after_first:
        calls = target.calls[:1]
        target = Message("assistant", thought=call_thought([calls[0].name], rng), calls=calls)
    elif len(target.calls) == 1 and rng.random() < habits.promise_instead:
        target = Message("assistant", rng.choice(WORDS["promises"]), answer_thought(rng))
    elif (tag == "refusal" and rng.random() < habits.call_anyway) or (
        tag == "ask" and rng.random() < habits.invent_value
    ):
        spec = rng.choice(example.tools) if tag == "refusal" else _asked_tool(example)
        parameters = {key: _value(str(about["kind"]), rng, "train") for key, about in spec.parameters.items()}
        if tag == "ask":
            parameters.update(_values_in(example, spec))
        call = ToolCall(spec.name, parameters)
        target = Message("assistant", thought=call_thought([spec.name], rng), calls=(call,))
    return replace(example, target=target)


_Written = tuple[tuple[Message, ...], tuple[ToolSpec, ...], list[str]]


class _DialogueWriter:
    """Writes one dialogue with one random generator."""

    def __init__(self, rng: random.Random, world: str) -> None:
        self._rng = rng
        self._world = world
        self._domains = UNSEEN_DOMAINS if world == "unseen" else TRAINING_DOMAINS
        self._tools = [tool for group in self._domains.values() for tool in group]

    def write(self, kind: str) -> _Written:
        """Messages, tools on offer, and the tag of each assistant step; a method writes each kind of `KINDS`."""
        written: _Written = getattr(self, f"_{kind}")()
        return written

    def _single(self) -> _Written:
        request = self._request(self._rng.choice(self._tools))
        return self._with_answer(self._ask([request]), [request], "single")

    def _parallel_same(self) -> _Written:
        tool = self._rng.choice(self._tools)
        requests = [self._request(tool) for _ in range(self._rng.choice((2, 2, 2, 3)))]
        return self._with_answer(self._ask(requests), requests, "parallel_same")

    def _parallel_different(self) -> _Written:
        requests = [self._request(tool) for tool in self._rng.sample(self._tools, 2)]
        return self._with_answer(self._ask(requests), requests, "parallel_different")

    def _follow_up(self) -> _Written:
        pairs = [
            (first, second)
            for group in self._domains.values()
            for first in group
            for second in group
            if second.follow_up and next(iter(second.parameters)) in first.returns
        ]
        first, second = self._rng.choice(pairs)
        request = self._request(first)
        messages, _, tags = self._with_answer(self._ask([request]), [request], "single", share=1.0)
        given = next(iter(second.parameters))
        values = {key: self._value(kind) for key, kind in second.parameters.items()}
        values[given] = execute(request.call, self._domains)[given]
        clause = self._rng.choice(second.follow_up).format(**values)
        call = ToolCall(second.name, values)
        step = Message("assistant", thought=call_thought([second.name], self._rng), calls=(call,))
        return (*messages, self._say(clause), step), self._offer([first, second]), [*tags, "follow_up"]

    def _missing(self) -> _Written:
        tool = self._rng.choice([tool for tool in self._tools if any("[" in p for p in self._phrasings(tool))])
        phrasing = self._rng.choice([p for p in self._phrasings(tool) if "[" in p])
        optional = self._rng.choice(re.findall(r"\[.*?\]", phrasing))
        (left_out,) = re.findall(r"{(\w+)}", optional)
        request = self._request(tool, phrasing.replace(optional, ""))
        question = Message(
            "assistant",
            self._rng.choice(("Which {} should I use?", "I still need the {}.")).format(left_out),
            missing_thought(left_out, self._rng),
        )
        value = request.call.parameters[left_out]
        reply = self._rng.choice(("{}, please.", "Use {}.", "Take {}.")).format(value)
        step = Message("assistant", thought=call_thought([tool.name], self._rng), calls=(request.call,))
        messages = (self._ask([request]), question, Message("user", reply), step)
        return messages, self._offer([tool]), ["ask", "after_ask"]

    def _refusal(self) -> _Written:
        tool = self._rng.choice(self._tools)
        (domain,) = (group for group in self._domains.values() if tool in group)
        request = self._request(tool)
        step = Message("assistant", self._rng.choice(WORDS["refusals"]), refusal_thought(self._rng))
        return (self._ask([request]), step), self._offer([], without=domain), ["refusal"]

    def _with_answer(self, question: Message, requests: list[_Request], tag: str, share: float = 0.15) -> _Written:
        """The calls and, in a share of the dialogues, their results and the answer."""
        names = [request.tool.name for request in requests]
        calls = tuple(request.call for request in requests)
        messages = [question, Message("assistant", thought=call_thought(names, self._rng), calls=calls)]
        tags = [tag]
        if self._rng.random() < share:
            results = [execute(call, self._domains) for call in calls]
            answer = " ".join(r.tool.answer.format(**result) for r, result in zip(requests, results, strict=True))
            messages += [
                Message("observation", observation(results)),
                Message("assistant", answer, answer_thought(self._rng)),
            ]
            tags.append("answer")
        return tuple(messages), self._offer([request.tool for request in requests]), tags

    def _request(self, tool: SyntheticTool, phrasing: str | None = None) -> _Request:
        phrasing = phrasing or self._rng.choice(self._phrasings(tool))
        values = {key: self._value(kind) for key, kind in tool.parameters.items()}
        clause = phrasing.replace("[", "").replace("]", "").format(**values)
        return _Request(tool, ToolCall(tool.name, values), clause)

    def _phrasings(self, tool: SyntheticTool) -> tuple[str, ...]:
        return tool.phrasings if self._world == "unseen" else tool.phrasings[:-1]

    def _ask(self, requests: list[_Request]) -> Message:
        return self._say(self._rng.choice(WORDS["joins"][self._world]).join(request.clause for request in requests))

    def _say(self, clause: str) -> Message:
        text = self._rng.choice(WORDS["leads"][self._world]) + clause
        return Message("user", text[0].upper() + text[1:] + ".")

    def _offer(self, needed: list[SyntheticTool], without: Sequence[SyntheticTool] = ()) -> tuple[ToolSpec, ...]:
        """The needed tools among two or three others, in random order."""
        unique = list(dict.fromkeys(needed))
        others = [tool for tool in self._tools if tool not in unique and tool not in without]
        offered = unique + self._rng.sample(others, max(1, self._rng.choice((3, 4)) - len(unique)))
        self._rng.shuffle(offered)
        return tuple(tool_spec(tool) for tool in offered)

    def _value(self, kind: str) -> JsonValue:
        return _value(kind, self._rng, self._world)


def _value(kind: str, rng: random.Random, world: str) -> JsonValue:
    if kind == "name":
        words = rng.choice((1, 1, 2))
        return " ".join(
            "".join(rng.choices(_SYLLABLES[world], k=rng.choice((2, 3)))).capitalize() for _ in range(words)
        )
    if kind == "code":
        return rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") + str(rng.randrange(1000, 10000))
    if kind == "day":
        return f"{rng.choice(WORDS['months'])} {rng.randrange(1, 29)}"
    if kind == "time":
        return f"{rng.randrange(7, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    if kind == "small":
        return rng.randrange(2, 13)
    if kind == "amount":
        return rng.randrange(10, 1000)
    return rng.choice(WORDS["closed_kinds"][kind])


def tool_spec(tool: SyntheticTool) -> ToolSpec:
    """A tool as prompts offer it."""
    types = {"small": "integer", "amount": "integer"}
    parameters = {key: {"type": types.get(kind, "string"), "kind": kind} for key, kind in tool.parameters.items()}
    return ToolSpec.of(tool.name, tool.description, parameters)


def _asked_tool(example: TurnExample) -> ToolSpec:
    """The tool that the next step of an `ask` dialogue would call: the one that has the parameter asked for."""
    wanted = re.findall(r"the (\w+) is missing|know the (\w+)", example.target.thought.lower())
    names = {name for pair in wanted for name in pair if name}
    return next(tool for tool in example.tools if names & set(tool.parameters))


def _values_in(example: TurnExample, spec: ToolSpec) -> dict[str, JsonValue]:
    """Names that the request gives, in order, for the parameters of that kind."""
    text = example.history[-1].text
    names = re.findall(r"(?<=[a-z] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", text)
    keys = [key for key, about in spec.parameters.items() if about["kind"] == "name"]
    return dict(zip(keys, names, strict=False))


def _is_held_out(request: str) -> bool:
    """A tenth of all requests, told by their text alone, whatever seed generated them."""
    return hashlib.sha256(request.encode()).digest()[0] < 26
