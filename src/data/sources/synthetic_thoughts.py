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

from src.data.dialogue import Dialogue, ToolCall, TurnExample

Reasoning = Literal["brief", "long"]

_ASKED = re.compile(r"(?:Which|need the) (\w+)")
_CHOICE = re.compile(r"\(([^()]*)\)")

_TOPIC_KNOWN = (
    "(So|Now), the user (wants|needs|asks for) this: {topic}",
    "(This|The request) is (about|for) (this|something that a tool can do|one of my tools): {topic}",
    "(The user|The request) (asks me to do this|needs help with this|needs a tool for this): {topic}",
    "Let me (see|look|check), the user (wants|needs|asks for) this: {topic}",
)
_TOPIC_OPEN = (
    "(So|Now), the user (wants|needs|asks for) something and I (look for|need|have to find) a tool for it",
    "Let me (see|look|check) (what|how much of this) (the tools|my tools) can do for the user",
    "The user (wants|needs|asks for) something, so let me (see|check|look at) (the tools|my tools|the list of tools)",
)
_TOPIC_ANSWERED = (
    "(So|Now), what the user (wanted|needed|asked for) is done: {topic}",
    "(The tools have answered|There is a result), and it is about this: {topic}",
    "Let me (see|look|check), the user (wanted|needed|asked for) this: {topic}",
)
_UNFIT = (
    "{tool} is (for|about) (something else|other things|another need): {about}",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (not asked for|not what the user wants|of no use here)",
    "{tool} takes {parameters}, (which does not fit|but that is not asked for|so it is not right)",
    "There is (also|still) {tool} with {parameters}, (but not for this|which can not help|of no use here)",
    "Can {tool} (do it|help|be of use)? (No, it does this|Not here, it does this|No, that is for this): {about}",
    "I (do not need|can not use|have no use for) {tool} (here|now|for this|this time)",
    "{tool} can be (left out|left off|put off), it (is not about this|does not do this|is no help)",
)
_FIT = (
    "{tool} is (for|about) (just this|this very need|what the user wants): {about}",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (asked for|what the user wants|of use here)",
    "{tool} takes {parameters}, (which does fit|and that is asked for|so it is right)",
    "There is (also|still) {tool} with {parameters}, (just for this|which can help|of use here)",
    "Can {tool} (do it|help|be of use)? (Yes, it does this|It can, it does this|Yes, that is for this): {about}",
)
_CALLED = (
    "{tool} (was|has been) called, (it is done|its result is there|that is over)",
    "(Then|Also|Now) {tool}: {about}, (which|that) is (done|over|there by now)",
    "{tool} had its {parameters}, (and its result is there|and it is done|so that is over)",
)
_PLACES = {
    "request": ("The user (gives|names|has put in) the {keys}", "The request (gives|has|shows) the {keys}",
                "I (find|see|have) the {keys} in the request", "For the {keys} I (use|look at|see) the request"),
    "reply": ("The reply (gives|has|shows) the {keys}", "I (find|see|have) the {keys} in the reply",
              "The user (gives|names|has put in) the {keys} now"),
    "result": ("The (result|tool) (gave|had|shows) the {keys}", "I (find|see|have) the {keys} in the result"),
    "earlier": ("The (first request|user) (gave|had|named) the {keys} (ahead of this|before)",
                "I (find|see|have) the {keys} in the first request"),
    "": ("I (find|see|have) no {keys} in the request", "The user (gives|names|has put in) no {keys}",
         "For the {keys} there is (nothing|no value|no word)"),
}  # fmt: skip
_ORDINALS = ("first", "second", "third")
_MUSINGS = (
    "(I should|Let me|I have to) (look at|check|see) (the tools|each tool|the list) (one by one|once more|with care)",
    "(A|Each) (name|value|number) (has to|should) be (as|just as) (it is given|it was given|the user has it)",
    "(Which|What) tool (fits|can do this|is right|is of use|takes this)?",
    "The user (may|can) (want|need|ask for) (more|other things|something else) (then|still|after this)",
    "A call (needs|has|takes) (a name|the name of a tool) and (its values|what the tool takes|the parameters)",
    "(And then|So|Now), what (is left|is to be done|should I do|do I need|do I know)?",
    "(By now|So far), (all is plain|I see no problem|this is not much|I know what I need)",
    "The list (has|shows|names) (all tools|each tool that I can use|what each tool takes)",
    "One (step|thing|tool) at a time, (no need to run|there is time|so let me see|then I know)",
    "(This|That) (is not hard|can be done|takes some thought|should not take me much time)",
    "I (have|see|know) the (request|words of the user) and (the tools|the list|what my tools can do)",
    "The (order|place) of the tools (is of no use|is not a reason|has nothing to say|does not help)",
    "(A|Each) tool can do (what it is for|no more than it is for|one thing and nothing else)",
    "The name of a tool (says much|shows its use|is a help|can say what it does)",
    "(A call is for a tool|To a tool goes a call) and (a response is for the user|to the user goes a response)",
    "(I look|Let me look) at (the names|the request|the parameters) (once more|now|with care|then)",
)
_NONE_FITS = ("No tool fits.", "There is no tool for this.")
_NOTHING_LEFT = ("I can answer now.", "Nothing is left to call.")
_FIRST_ONLY = (
    "(That is the first of it|One is a start|The rest can be done then), so I make one call (now|for now)",
    "I (start with|do|take) the first (now|for now) and (leave|put off) the rest",
)
_PROMISED = (
    "{tool} can do it, (but|still) I (first|just) (tell the user|say) that I will",
    "This takes {tool}, (but|still) for now I (first|just) (tell the user|say) that I will",
)
_NEAREST = (
    "No tool fits (as it is|in full), but {tool} is (near|not far off), so I (make up|find) (its values|what it takes)",
    "There is no tool for this, (still|but) I (can|may) (run|use|try) {tool} and (make up|find) what it takes",
)
_MADE_UP = (
    "Nobody gave the {key}, so I (make something up|put in something)",
    "I do not know the {key}, (but|so|still) I (can|may) (make something up|put in something)",
)


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
    return rng.choice(_NOTHING_LEFT)


def refusal_thought(rng: random.Random) -> str:
    """Before a response that says that no tool can do it."""
    return rng.choice(_NONE_FITS)


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
    for musing in rng.sample(_MUSINGS, rng.choice((2, 3)) + 3 * max(0, len(situation.wanted) - 1)):
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
        return spin(rng.choice(_TOPIC_OPEN), rng)
    templates = _TOPIC_ANSWERED if situation.kind == "answer" else _TOPIC_KNOWN
    return spin(rng.choice(templates), rng).format(topic=" and also ".join(topics))


def _survey(situation: _Situation, rng: random.Random) -> list[str]:
    """A sentence on each tool, in random order."""
    wanted = {call.name for call in situation.wanted}
    fitting = _CALLED if situation.kind == "answer" else _FIT
    tools = situation.example.tools
    return [
        spin(rng.choice(fitting if tool.name in wanted else _UNFIT), rng).format(
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
        of = f" of the {_ORDINALS[index]}" if len(set(names)) < len(names) else ""
        sentences += [spin(rng.choice(_PLACES[place]), rng).format(keys=_listed(k) + of) for place, k in keys.items()]
    return sentences


def _place(value: object, situation: _Situation) -> str:
    """Where in the history a value stands (a key of `_PLACES`); empty: nowhere."""
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
        reasons: tuple[str, ...] = ()
        if situation.kind == "refusal":
            reasons = _NEAREST
        elif situation.unknown:
            reasons = _MADE_UP
        elif len(names) < len(situation.wanted):
            reasons = _FIRST_ONLY
        said = [spin(rng.choice(reasons), rng)] if reasons else []
        given = {"tool": names[0], "key": _listed(situation.unknown)}
        return [*(sentence.format(**given) for sentence in said), call_thought(names, rng)]
    if situation.kind == "answer":
        return [answer_thought(rng)]
    if situation.kind == "refusal":
        return [refusal_thought(rng)]
    if situation.kind == "ask":
        return [missing_thought(situation.unknown[0], rng)]
    return [spin(rng.choice(_PROMISED), rng).format(tool=wanted)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")
