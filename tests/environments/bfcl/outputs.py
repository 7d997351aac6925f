"""Outputs of every quality for a case: right ones, ones with a single mistake, empty ones and garbage. Seeded.

And what the official package says to them.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.environments.bfcl.cases import Case
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import step_text
from tests.environments.bfcl.gold import gold_calls, gold_turns

Calls = list[ToolCall]

RUNNER = Path(__file__).with_name("official_runner.py")

GARBAGE = (
    "",
    " \n",
    "I cannot help with that.",
    "<think> Hm. </think>\n<response> No tool fits. </response>",
    "<tool_call>\n</tool_call>",
    "<tool_call>\n[]\n</tool_call>",
    '<tool_call>\n{"name": "None", "parameters": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "parameters": "x"\n</tool_call>',
    "<tool_call>\nls(a=True)\n</tool_call>",
    '<tool_call>\n[{"name": "f", "parameters": {}}]\n</tool_call>',
    '{"name": "f", "parameters": {}}',
    '<tool_call>\n{"name": "f", "parameters": {"x": [1, {"y": null}]}}',
    '<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>\n<tool_call>\nnull\n</tool_call>',
    '<tool_call> <tool_call>\n{"name": "", "parameters": {"": ""}}\n</tool_call> </tool_call>',
    "</tool_call><tool_call>\x00\ufffd漢🌧️</think>",
)


def text(calls: Sequence[ToolCall]) -> str:
    return step_text(Message("assistant", "Done." if not calls else "", "Let me see.", tuple(calls)))


def _one(change: Callable[[random.Random, ToolCall], ToolCall]) -> Callable[[random.Random, Calls], Calls]:
    def apply(rng: random.Random, calls: Calls) -> Calls:
        index = rng.randrange(len(calls))
        return [*calls[:index], change(rng, calls[index]), *calls[index + 1 :]]

    return apply


def _value(change: Callable[[Any], Any]) -> Callable[[random.Random, Calls], Calls]:
    def apply(rng: random.Random, call: ToolCall) -> ToolCall:
        if not call.parameters:
            return call
        key = rng.choice(list(call.parameters))
        return replace(call, parameters={**call.parameters, key: change(call.parameters[key])})

    return _one(apply)


def _without(rng: random.Random, call: ToolCall) -> ToolCall:
    dropped = rng.choice(list(call.parameters)) if call.parameters else ""
    return replace(call, parameters={key: value for key, value in call.parameters.items() if key != dropped})


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + " x"
    if isinstance(value, int | float):
        return value + 1
    return [*value, *value[:1], 0] if isinstance(value, list) else {**value, "further": 1}


def _other_type(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return list(value)
    return str(value) if not isinstance(value, list) else [str(item) for item in value] or {}


MISTAKES: dict[str, Callable[[random.Random, Calls], Calls]] = {
    "right": lambda rng, calls: calls,
    "wrong name": _one(lambda rng, call: replace(call, name=call.name + "_2")),
    "dropped call": lambda rng, calls: calls[:-1],
    "extra call": lambda rng, calls: [*calls, calls[0]],
    "unknown call": lambda rng, calls: [*calls, ToolCall("exit", {})],
    "other order": lambda rng, calls: calls[::-1],
    "changed value": _value(_other),
    "wrong type": _value(_other_type),
    "null": _value(lambda value: None),
    "inner value": _value(lambda value: [[value]] if isinstance(value, list) else {"": value}),
    "spelling": _value(lambda value: value.upper().replace(" ", "-") if isinstance(value, str) else float_of(value)),
    "missing parameter": _one(_without),
    "unknown parameter": _one(lambda rng, call: replace(call, parameters={**call.parameters, "further": 1})),
    "no identifier": _one(lambda rng, call: replace(call, parameters={**call.parameters, "a b": "'); x("})),
    "many digits": _value(lambda value: "9" * 5000 if isinstance(value, str) else 9 * 10**50),
    "call in string": _value(lambda value: f"{value} then sort (it), ls(a)" if isinstance(value, str) else value),
}


def float_of(value: Any) -> Any:
    return float(value) if type(value) is int else value


def single_turn_output(rng: random.Random, case: Case, mistake: str) -> str:
    """The text of one response, with one mistake, or one of the garbage texts."""
    calls = gold_calls(case)
    if not calls:  # relevance and irrelevance have no gold answer
        return rng.choice([*GARBAGE, *[text([ToolCall("anything", {"x": 1})])] * len(GARBAGE)])
    return rng.choice(GARBAGE) if mistake == "garbage" else text(MISTAKES[mistake](rng, calls))


def multi_turn_output(rng: random.Random, case: Case, mistake: str) -> list[list[str]]:
    """The texts of all responses, `[turn][step]`; the mistake is in one turn."""
    turns = gold_turns(case)
    if rng.random() < 0.5:  # all calls of a turn in one step
        turns = [[[call for step in turn for call in step]] for turn in turns]
    target = rng.choice([index for index, turn in enumerate(turns) if any(turn)])
    if mistake == "garbage":
        texts = [[text(step) for step in turn] for turn in turns]
        texts[target].insert(rng.randrange(len(texts[target]) + 1), rng.choice(GARBAGE))
    elif mistake == "fewer turns":
        texts = [[text(step) for step in turn] for turn in turns[:-1]]
    else:
        index = rng.randrange(len(turns[target]))
        turns[target][index] = MISTAKES.get(mistake, lambda rng, calls: [])(rng, turns[target][index])
        texts = [[text(step) for step in turn] for turn in turns]
    return [[*turn, text([])] for turn in texts]  # a turn ends with a response without calls


def ask_official(requests: Iterable[Any], folder: Path) -> list[Any]:
    """The official package's answers, from one run of its process."""
    asked, answered = folder / "requests.json", folder / "answers.json"
    asked.write_text(json.dumps(list(requests)))
    subprocess.run([sys.executable, str(RUNNER), str(asked), str(answered)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(answered.read_text())
