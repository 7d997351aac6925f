"""The loop with answers and results that are written down; `test_gold.py` runs it with the real tools."""

from collections.abc import Iterator, Mapping, Sequence

import pytest

from src.environments.bfcl.sandbox import Execution
from src.protocol.dialogue import ChatPrompt, JsonValue, ToolCall
from src.wings.evaluation.benchmark import Answer
from src.wings.evaluation.bfcl.dataset import Case
from src.wings.evaluation.bfcl.loop import STEP_LIMIT, Conversation
from src.wings.evaluation.lock_step import play

DOC = {"name": "ls", "description": "List.", "parameters": {"type": "dict", "properties": {}, "required": []}}
LS = ToolCall("ls", {})
CALL = Answer.of('<tool_call>\n{"name": "ls", "parameters": {}}\n</tool_call>')
TALK = Answer.of("<response> Done. </response>")


class Recorder:
    """Numbers the steps that it is given; breaks down at one of them."""

    def __init__(self, breaks_at: int = 0, error_type: str = "") -> None:
        self.requests: list[list[int]] = []
        self._breaks_at, self._error_type = breaks_at, error_type

    def execute(self, entry: Mapping[str, JsonValue], steps: Sequence[Sequence[ToolCall]]) -> Execution:
        self.requests.append([len(step) for step in steps])
        if len(steps) == self._breaks_at:
            return Execution((), self._error_type)
        return Execution(tuple(f"result {len(steps)}.{index}" for index in range(len(steps[-1]))))


def case(name: str = "multi_turn_base_0", turns: int = 2) -> Case:
    question = [[{"role": "user", "content": f"Request {turn}."}] for turn in range(turns)]
    return Case(name, name.rpartition("_")[0], {"id": name, "question": question}, [DOC])


def take_all(conversation: Conversation, answers: Sequence[Answer]) -> list[bool]:
    return [conversation.take(answer) for answer in answers]


def test_a_turn_ends_with_an_answer_without_calls():
    recorder = Recorder()
    conversation = Conversation(case(), recorder, "official")
    two = Answer.of('<tool_call>\n{"name": "ls", "parameters": {}}\n{"name": "ls", "parameters": {}}\n</tool_call>')
    assert take_all(conversation, [CALL, two, TALK, CALL, TALK]) == [False] * 4 + [True]
    assert recorder.requests == [[1], [1, 2], [1, 2, 1]]  # all steps so far, over turns
    assert conversation.calls() == [[(LS,), (LS, LS)], [(LS,)]]
    assert conversation.turns[0].steps[1].results == ("result 2.0", "result 2.1")
    assert conversation.error_type == ""


def test_a_turn_may_have_no_call_at_all():
    conversation = Conversation(case(), Recorder(), "official")
    assert take_all(conversation, [TALK, TALK]) == [False, True]
    assert conversation.calls() == [[], []]


@pytest.mark.parametrize("talks_first", [False, True])
def test_a_case_is_stopped_after_21_executed_steps_of_a_turn(talks_first):
    recorder = Recorder()
    conversation = Conversation(case(turns=3), recorder, "official")
    if talks_first:
        assert not conversation.take(TALK)
    assert take_all(conversation, [CALL] * (STEP_LIMIT + 1)) == [False] * 20 + [True]
    assert len(recorder.requests) == 21
    assert len(conversation.calls()) == 1 + talks_first  # of 3 turns, which the checker takes for a failure


def test_twenty_steps_a_turn_are_fine():
    conversation = Conversation(case(), Recorder(), "official")
    assert not any(take_all(conversation, [*[CALL] * 20, TALK, *[CALL] * 20]))
    assert conversation.take(TALK)


@pytest.mark.parametrize("error_type", ["time_limit", "memory_limit"])
def test_a_step_that_cannot_be_run_ends_the_case(error_type):
    conversation = Conversation(case(), Recorder(breaks_at=2, error_type=error_type), "official")
    assert take_all(conversation, [CALL, CALL]) == [False, True]
    assert conversation.error_type == error_type


def test_a_prompt_that_does_not_fit_ends_the_case():
    conversation = Conversation(case(), Recorder(), "official")
    assert take_all(conversation, [CALL, Answer(TALK.text, TALK.parsed, 0, "context")]) == [False, True]
    assert conversation.error_type == "context_exceeded"


def test_tokens_and_cut_answers_are_counted():
    conversation = Conversation(case(), Recorder(), "official")
    take_all(conversation, [Answer(CALL.text, CALL.parsed, 5), Answer(TALK.text, TALK.parsed, 7, "length")])
    assert (conversation.tokens, conversation.truncated) == (12, 1)


def test_held_back_functions_come_with_their_turn():
    entry = {"id": "multi_turn_miss_func_0", "question": [[{"role": "user", "content": "List."}], []]}
    conversation = Conversation(
        Case("multi_turn_miss_func_0", "multi_turn_miss_func", entry, [], {1: [DOC]}), Recorder(), "official"
    )
    assert "ls" not in conversation.prompt().user
    conversation.take(TALK)
    # the package formats the list of docs with Python's `str.format`, without language hints
    assert conversation.prompt().user.endswith(
        "<user> [{'name': 'ls', 'description': 'List.', 'parameters': {'type': 'dict', 'properties': {}, 'required': "
        "[]}}]\nI have updated some more functions you can choose from. What about now? </user>"
    )


def test_cases_play_in_lock_step_and_leave_when_they_are_done():
    lengths = {"a": 1, "b": 3, "c": 2, "d": 1}
    asked: list[int] = []

    def generate(prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        asked.append(len(prompts))
        yield from ((index, TALK) for index in range(len(prompts)))

    cases = (Conversation(case(f"x_{name}", turns), Recorder(), "official") for name, turns in lengths.items())
    finished = [(conversation.case.id, len(asked)) for conversation in play(cases, generate, concurrent=3)]
    # step 1: a b c, and a is done; step 2: b c d, and c and d are; step 3: b
    assert finished == [("x_a", 1), ("x_c", 2), ("x_d", 2), ("x_b", 3)]
    assert asked == [3, 3, 1]
