"""The benchmark on given answers; `test_gold.py` gives it the gold ones."""

import json
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.environments.bfcl.cases import CATEGORIES, Case
from src.environments.bfcl.sandbox import Execution
from src.environments.conversation import Answer
from src.protocol.dialogue import ChatPrompt, JsonValue, ToolCall
from src.wings.evaluation.benchmark import Subset
from src.wings.evaluation.bfcl.bfcl import STEP_LIMIT, Bfcl, CaseConversation
from tests.conftest import ROOT

GARBAGE = '<tool_call>\n{"name": "\\ud800", "parameters": {"x": NaN, "y": "\\udfff"}}\n</tool_call>'


class Saying:
    """The same answer to every prompt."""

    def __init__(self, text: str, finish: str = "stop") -> None:
        self.text, self.finish, self.asked = text, finish, 0

    def __call__(self, prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        for index in range(len(prompts)):
            self.asked += 1
            yield index, Answer(self.text, Answer.of(self.text).parsed, 3, self.finish)


def test_silence_passes_irrelevance_and_nothing_else():
    report = Bfcl(["non_live", "live_relevance", "multi_turn_miss_param"]).run(Saying("Hm."), subset=Subset(100))
    shares = {name: report.scores[name] for name in CATEGORIES if name in report.scores}
    assert shares == {name: float(name == "irrelevance") for name in shares}
    assert report.scores["non_live"] == pytest.approx(0.2)


@pytest.mark.parametrize(("text", "unparsed"), [('<tool_call>\n{"name": "f", "para', 12), ("No.", 0)])
def test_unparsed_answers_pass_irrelevance_and_are_counted(text, unparsed):
    report = Bfcl(["irrelevance", "multi_turn_base"]).run(Saying(text), subset=Subset(12))
    assert report.scores["irrelevance"] == 1.0 and report.scores["multi_turn_base"] == 0.0
    assert report.counts["unparsed/irrelevance"] == (report.counts["irrelevance"] if unparsed else 0)
    assert report.counts["unparsed"] == unparsed


def test_prompts_that_do_not_fit_fail_and_are_counted():
    report = Bfcl(["irrelevance", "multi_turn_base"]).run(Saying("", "context"), subset=Subset(12))
    assert not any(record.passed for record in report.records)
    assert {record.details["error_type"] for record in report.records} == {"context_exceeded"}
    assert report.counts["context_exceeded"] == 12


def test_records_are_json_whatever_the_model_wrote():
    report = Bfcl(["java", "live_relevance", "multi_turn_base"]).run(Saying(GARBAGE, "length"), subset=Subset(30))
    for record in report.records:
        text = json.dumps(dict(record.details), ensure_ascii=False, allow_nan=False)
        assert json.loads(text.encode("utf-8")) == record.details
    passed = {record.category for record in report.records if record.passed}
    assert passed == {"live_relevance"}  # any call will do
    assert report.counts["truncated"] == 30
    stopped = [record for record in report.records if record.category == "multi_turn_base"]
    assert stopped and all(len(record.details["turns"][0]) == 21 for record in stopped)


def test_finished_samples_are_not_asked_again():
    benchmark = Bfcl(["java", "live_relevance"])
    whole = benchmark.run(Saying("Hm."), subset=Subset(20))
    again = Saying("Hm.")
    report = benchmark.run(again, subset=Subset(20), finished=whole.records[:15])
    assert again.asked == 5
    assert report == whole


def test_the_worker_is_gone_after_a_failure():
    benchmark = Bfcl(["simple"])

    def broken(prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        yield 0, Answer.of(GARBAGE)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        benchmark.run(broken)
    assert benchmark._sandbox._worker is None


def test_the_config_holds_the_defaults():
    config = OmegaConf.load(ROOT / "configs" / "benchmark" / "bfcl.yaml")
    benchmark = instantiate(config)
    assert isinstance(benchmark, Bfcl)
    default = Bfcl()
    assert {name: vars(benchmark)[name] for name in ("_categories", "_wording", "_max_concurrent", "on_missing")} == {
        name: vars(default)[name] for name in ("_categories", "_wording", "_max_concurrent", "on_missing")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_wording": "native", "layout": "compact"}, "expected prompt.layout=native, found compact"),
        (
            {"turn_wording": "ToolRL"},
            "turn_wording: expected 'official' or 'toolrl' or 'native', found 'ToolRL'",
        ),
        ({"on_missing": "ignore"}, "benchmark.bfcl.on_missing: expected 'error' or 'skip', found 'ignore'"),
        ({"max_concurrent": 0}, "benchmark.bfcl.max_concurrent: expected at least 1, found 0"),
        ({"time_limit": 0}, "benchmark.bfcl.time_limit: expected seconds above 0, found 0"),
        ({"categories": ["all", "chatable"]}, "found chatable"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Bfcl(**settings)


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

    def close(self) -> None:
        """Nothing to end."""


def case(name: str = "multi_turn_base_0", turns: int = 2) -> Case:
    question = [[{"role": "user", "content": f"Request {turn}."}] for turn in range(turns)]
    return Case(name, name.rpartition("_")[0], {"id": name, "question": question}, [DOC])


def take_all(conversation: CaseConversation, answers: Sequence[Answer]) -> list[bool]:
    return [conversation.take(answer) for answer in answers]


def test_a_turn_ends_with_an_answer_without_calls():
    recorder = Recorder()
    conversation = CaseConversation(case(), recorder, "official")
    two = Answer.of('<tool_call>\n{"name": "ls", "parameters": {}}\n{"name": "ls", "parameters": {}}\n</tool_call>')
    assert take_all(conversation, [CALL, two, TALK, CALL, TALK]) == [False] * 4 + [True]
    assert recorder.requests == [[1], [1, 2], [1, 2, 1]]  # all steps so far, over turns
    assert conversation.calls() == [[(LS,), (LS, LS)], [(LS,)]]
    assert conversation.turns[0].steps[1].results == ("result 2.0", "result 2.1")
    assert conversation.error_type == ""


def test_a_turn_may_have_no_call_at_all():
    conversation = CaseConversation(case(), Recorder(), "official")
    assert take_all(conversation, [TALK, TALK]) == [False, True]
    assert conversation.calls() == [[], []]


@pytest.mark.parametrize("talks_first", [False, True])
def test_a_case_is_stopped_after_21_executed_steps_of_a_turn(talks_first):
    recorder = Recorder()
    conversation = CaseConversation(case(turns=3), recorder, "official")
    if talks_first:
        assert not conversation.take(TALK)
    assert take_all(conversation, [CALL] * (STEP_LIMIT + 1)) == [False] * 20 + [True]
    assert len(recorder.requests) == 21
    assert len(conversation.calls()) == 1 + talks_first  # of 3 turns, which the checker takes for a failure


def test_twenty_steps_a_turn_are_fine():
    conversation = CaseConversation(case(), Recorder(), "official")
    assert not any(take_all(conversation, [*[CALL] * 20, TALK, *[CALL] * 20]))
    assert conversation.take(TALK)


@pytest.mark.parametrize("error_type", ["time_limit", "memory_limit"])
def test_a_step_that_cannot_be_run_ends_the_case(error_type):
    conversation = CaseConversation(case(), Recorder(breaks_at=2, error_type=error_type), "official")
    assert take_all(conversation, [CALL, CALL]) == [False, True]
    assert conversation.error_type == error_type


def test_a_prompt_that_does_not_fit_ends_the_case():
    conversation = CaseConversation(case(), Recorder(), "official")
    assert take_all(conversation, [CALL, Answer(TALK.text, TALK.parsed, 0, "context")]) == [False, True]
    assert conversation.error_type == "context_exceeded"


def test_tokens_and_cut_answers_are_counted():
    conversation = CaseConversation(case(), Recorder(), "official")
    take_all(conversation, [Answer(CALL.text, CALL.parsed, 5), Answer(TALK.text, TALK.parsed, 7, "length")])
    assert (conversation.tokens, conversation.truncated) == (12, 1)


def test_held_back_functions_come_with_their_turn():
    entry = {"id": "multi_turn_miss_func_0", "question": [[{"role": "user", "content": "List."}], []]}
    conversation = CaseConversation(
        Case("multi_turn_miss_func_0", "multi_turn_miss_func", entry, [], {1: [DOC]}), Recorder(), "official"
    )
    assert "ls" not in conversation.prompt().user
    conversation.take(TALK)
    # the package formats the list of docs with Python's `str.format`, without language hints
    assert conversation.prompt().user.endswith(
        "<user> [{'name': 'ls', 'description': 'List.', 'parameters': {'type': 'dict', 'properties': {}, 'required': "
        "[]}}]\nI have updated some more functions you can choose from. What about now? </user>"
    )
