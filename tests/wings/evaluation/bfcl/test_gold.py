"""Gold answers as text through the whole path: prompt, answer, decoding, execution, verdict, score."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import pytest

from src.data.templates.published import published_system
from src.environments.bfcl.cases import CATEGORIES, GROUPS, Case, is_multi_turn
from src.environments.bfcl.world import tool_specs, turn_messages
from src.environments.conversation import Answer, Turn
from src.protocol.dialogue import ChatPrompt, Message, ToolCall
from src.protocol.formats.rest import step_text
from src.wings.evaluation.bfcl.bfcl import Bfcl
from src.wings.evaluation.bfcl.prompting import build_prompt
from tests.environments.bfcl.gold import NEVER_PASS, gold_calls, gold_turns

Calls = list[ToolCall]
RESPONSE = Message("assistant", "There is nothing more to do.", "Done.")


class GoldGenerate:
    """Recognises a case by its prompt alone and answers with its gold calls.

    Args:
        cases: those that it knows.
        change: what it makes of the gold calls of a case or turn.
        per_step: calls in one answer of a multi-turn case.
    """

    def __init__(
        self, cases: Sequence[Case], change: Callable[[Calls], Calls] = lambda calls: calls, per_step: int = 99
    ) -> None:
        self._single: dict[ChatPrompt, Calls] = {}
        self._multi: dict[tuple[str, ...], Calls] = {}
        self._per_step = per_step
        for case in cases:
            if is_multi_turn(case.category):
                self._learn_turns(case, change)
            else:
                prompt = build_prompt(case, [Turn(turn_messages(case, 0))], "official")
                self._single[prompt] = change(self._calls(case))

    def __call__(self, prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(prompts))):
            calls = self._next(prompts[index])
            step = Message("assistant", "", "Let me call.", tuple(calls)) if calls else RESPONSE
            yield index, Answer.of(step_text(step))

    def _calls(self, case: Case) -> Calls:
        return [ToolCall(case.functions[0]["name"], {})] if case.category == "live_relevance" else gold_calls(case)

    def _learn_turns(self, case: Case, change: Callable[[Calls], Calls]) -> None:
        key = [published_system(tool_specs(case))]
        for index, steps in enumerate(gold_turns(case)):
            key += [message["content"] for message in turn_messages(case, index)]
            self._multi[tuple(key)] = change([call for step in steps for call in step])

    def _next(self, prompt: ChatPrompt) -> Calls:
        if prompt in self._single:
            return self._single[prompt]
        turns = re.findall(r"<user> (.*?) </user>", prompt.user, re.DOTALL)
        done = prompt.user.rpartition("</user>")[2].count("<obs> ") * self._per_step
        return self._multi[prompt.system, *turns][done : done + self._per_step]


# Three prompts are in live_simple or live_multiple, with a call as gold answer, and in live_irrelevance, with none;
# multi_turn_base and multi_turn_long_context have the same prompts with different gold calls. So: one after another.
SEPARATE = {
    "non_live": GROUPS["non_live"],
    "live": tuple(name for name in GROUPS["live"] if name != "live_irrelevance"),
    "live_irrelevance": ("live_irrelevance",),
    **{name: (name,) for name in GROUPS["multi_turn"]},
}


SLOW = ("multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SEPARATE]
)
def test_gold_answers_pass(name):
    categories = SEPARATE[name]
    benchmark = Bfcl(categories)
    cases = [sample.data for sample in benchmark.samples()]
    report = benchmark.run(GoldGenerate(cases))
    failed = {record.id for record in report.records if not record.passed}
    assert failed == NEVER_PASS & {case.id for case in cases}
    assert {name: report.counts[name] for name in categories} == {name: CATEGORIES[name] for name in categories}


def test_gold_calls_one_a_step_pass_too():
    benchmark = Bfcl(["multi_turn_base"], max_concurrent=7)
    samples = benchmark.samples()[::8]
    records = list(benchmark.answer(samples, GoldGenerate([sample.data for sample in samples], per_step=1)))
    assert len(records) == len(samples) and all(record.passed for record in records)
    assert max(len(turn) for record in records for turn in record.details["turns"]) > 2


def wrong_name(calls: Calls) -> Calls:
    return [ToolCall(call.name + "x", call.parameters) for call in calls]


def dropped_call(calls: Calls) -> Calls:
    return calls[1:]


def extra_call(calls: Calls) -> Calls:
    return [*calls, *calls[:1]] if calls else [ToolCall("ls", {})]


def changed_value(calls: Calls) -> Calls:
    return [ToolCall(call.name, {key: other(value) for key, value in call.parameters.items()}) for call in calls]


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 17
    if isinstance(value, str):
        return "something else"  # Java and JavaScript literals too: their converters ignore what stands around them
    return [*value, "wrong"] if isinstance(value, list) else {**value, "wrong": 1}


@pytest.mark.parametrize(
    "change",
    [wrong_name, changed_value, *(pytest.param(f, marks=pytest.mark.slow) for f in (dropped_call, extra_call))],
)
def test_corrupted_answers_fail(change):
    benchmark = Bfcl(["single_turn", "multi_turn_base"])
    passed = []
    for category in CATEGORIES:
        if category in ("live_relevance", "irrelevance", "live_irrelevance") and change is not extra_call:
            continue
        if category == "live_relevance" or (change is extra_call and is_multi_turn(category)):
            continue
        samples = list(islice((s for s in benchmark.samples() if s.category == category), 10))
        generate = GoldGenerate([sample.data for sample in samples], change)
        passed += [(change, record.id) for record in benchmark.answer(samples, generate) if record.passed]
    assert not passed
