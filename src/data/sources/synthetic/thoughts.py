"""What the synthetic corpus's assistant thinks before a step: in a few words (`brief`) or at length (`long`).

A long thought says in random order and in interchangeable wordings what the request is about, what each offered tool
is for, where the values stand, and what follows. Little of it decides the reward, as in the thoughts of a reasoning
model; all of it is true of the step that it precedes, imperfect steps included. Writes text from dialogues, nothing
else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from src.data.sources.synthetic.domains import WORDINGS
from src.protocol.dialogue import Dialogue, ToolCall, TurnExample

Reasoning = Literal["brief", "long"]

_ASKED = re.compile(r"(?:Which|need the) (\w+)")
_CHOICE = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True, slots=True)
class _Situation:
    """A step and what its thought may speak of.

    Attributes:
        example: history, tools, the step taken as target (its own thought is ignored) and, as tag, the kind of step
            that the expert takes here.
        wanted: the calls that the request amounts to; none where no tool fits.
        unknown: their parameters whose values nobody gave.
    """

    example: TurnExample
    wanted: Sequence[ToolCall]
    unknown: Sequence[str]

    @property
    def kind(self) -> str:
        return self.example.tags[0]


def call_thought(names: Sequence[str], rng: random.Random) -> str:
    """How many calls of which tools: the plan that the calls then follow."""
    if len(set(names)) < len(names):
        wanted = f"{names[0]} {'twice' if len(names) == 2 else 'three times'}"
    else:
        wanted = " and ".join(names)
    return rng.choice(("I need {}.", "This takes {}.", "The user wants {}.")).format(wanted)


def answer_thought(rng: random.Random) -> str:
    """Before a response that needs no further call."""
    return rng.choice(WORDINGS["nothing_left"])


def refusal_thought(rng: random.Random) -> str:
    """Before a response that says that no tool can do it."""
    return rng.choice(WORDINGS["none_fits"])


def missing_thought(key: str, rng: random.Random) -> str:
    """Before a question for the parameter `key`."""
    return rng.choice(("The {} is missing.", "I do not know the {}.")).format(key)


def long_thought(example: TurnExample, dialogue: Dialogue, rng: random.Random) -> str:
    """The long thought before a step; ends with the words of a brief one, which name the calls.

    Args:
        example: the step, with its tag. The target may be an imperfect demonstrator's.
        dialogue: the expert's, of which the example's history is the beginning.
        rng: chooses order and wordings.
    """
    situation = _situation(example, dialogue)
    sentences = [_opening(situation, rng), *_survey(situation, rng), *_sources(situation, rng)]
    for musing in rng.sample(WORDINGS["musings"], rng.choice((2, 3)) + 3 * max(0, len(situation.wanted) - 1)):
        sentences.insert(rng.randint(1, len(sentences)), spin(musing, rng))
    sentences += _decision(situation, rng)
    return " ".join(sentence if sentence.endswith((".", "?")) else f"{sentence}." for sentence in sentences)


def spin(template: str, rng: random.Random) -> str:
    """Choose one of the alternatives in each pair of parentheses.

    >>> spin("a (b|b) c", random.Random(0))
    'a b c'
    """
    return _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), template)


def _situation(example: TurnExample, dialogue: Dialogue) -> _Situation:
    taken, kind = example.target, example.tags[0]
    expert = dialogue.messages[len(example.history)]
    if kind == "ask" and taken.calls:  # it makes values up
        (call,) = taken.calls
        given = _Situation(example, (call,), ())
        return replace(given, unknown=[key for key, value in call.parameters.items() if not _place(value, given)])
    if kind == "ask":
        later = next(message for message in dialogue.messages[len(example.history) + 1 :] if message.calls)
        return _Situation(example, later.calls, _ASKED.findall(expert.text))
    if kind == "answer":
        return _Situation(example, example.history[-2].calls, ())
    return _Situation(example, expert.calls, ())


def _opening(situation: _Situation, rng: random.Random) -> str:
    about = {tool.name: tool.description for tool in situation.example.tools}
    topics = [_lowered(about[name]) for name in dict.fromkeys(call.name for call in situation.wanted)]
    if not topics:
        return spin(rng.choice(WORDINGS["topic_open"]), rng)
    templates = WORDINGS["topic_answered"] if situation.kind == "answer" else WORDINGS["topic_known"]
    return spin(rng.choice(templates), rng).format(topic=" and also ".join(topics))


def _survey(situation: _Situation, rng: random.Random) -> list[str]:
    """A sentence on each tool, in random order."""
    wanted = {call.name for call in situation.wanted}
    fitting = WORDINGS["called"] if situation.kind == "answer" else WORDINGS["fit"]
    tools = situation.example.tools
    return [
        spin(rng.choice(fitting if tool.name in wanted else WORDINGS["unfit"]), rng).format(
            tool=tool.name, about=_lowered(tool.description), parameters=_listed(list(tool.parameters))
        )
        for tool in rng.sample(tools, len(tools))
    ]


def _sources(situation: _Situation, rng: random.Random) -> list[str]:
    """Where the values of the calls to make stand: a sentence for each call and place."""
    if situation.kind == "answer":
        return []
    names = [call.name for call in situation.wanted]
    sentences = []
    for index, call in enumerate(situation.wanted):
        keys: dict[str, list[str]] = {}
        for key, value in call.parameters.items():
            place = "" if key in situation.unknown else _place(value, situation)
            keys.setdefault(place, []).append(key)
        of = f" of the {WORDINGS['ordinals'][index]}" if len(set(names)) < len(names) else ""
        sentences += [
            spin(rng.choice(WORDINGS["places"][place]), rng).format(keys=_listed(k) + of) for place, k in keys.items()
        ]
    return sentences


def _place(value: object, situation: _Situation) -> str:
    """Where in the history a value stands (a key of `WORDINGS["places"]`); empty: nowhere."""
    stands = re.compile(rf"(?<!\w){re.escape(str(value))}(?!\w)")
    history = situation.example.history
    for message in reversed(history):
        if message.role != "assistant" and stands.search(message.text):
            if message.role == "observation":
                return "result"
            if message is not history[-1]:
                return "earlier"
            return "reply" if situation.kind == "after_ask" else "request"
    return ""


def _decision(situation: _Situation, rng: random.Random) -> list[str]:
    """What follows from it all: one or two sentences that fit the step taken."""
    names = [call.name for call in situation.example.target.calls]
    wanted = _listed([call.name for call in situation.wanted])
    if names:
        reasons: Sequence[str] = ()
        if situation.kind == "refusal":
            reasons = WORDINGS["nearest"]
        elif situation.unknown:
            reasons = WORDINGS["made_up"]
        elif len(names) < len(situation.wanted):
            reasons = WORDINGS["first_only"]
        said = [spin(rng.choice(reasons), rng)] if reasons else []
        given = {"tool": names[0], "key": _listed(situation.unknown)}
        return [*(sentence.format(**given) for sentence in said), call_thought(names, rng)]
    if situation.kind == "answer":
        return [answer_thought(rng)]
    if situation.kind == "refusal":
        return [refusal_thought(rng)]
    if situation.kind == "ask":
        return [missing_thought(situation.unknown[0], rng)]
    return [spin(rng.choice(WORDINGS["promised"]), rng).format(tool=wanted)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")
