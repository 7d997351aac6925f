"""BFCL V3 as a benchmark: cases in, official verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

from src.environments.bfcl.calls import well_formed
from src.environments.bfcl.cases import Case, choose_categories, is_multi_turn, load_cases
from src.environments.bfcl.sandbox import Sandbox, Verdict, check_limits
from src.environments.bfcl.world import CaseWorld, tool_specs, turn_messages
from src.environments.conversation import Answer, Conversation, Generate, Turn, messages_of, play
from src.errors import ConfigError
from src.protocol.dialogue import ChatPrompt, JsonValue, OpenPrompt, ToolCall
from src.protocol.formats.rest import call_line
from src.wings.evaluation.benchmark import UNPARSED, Benchmark, Record, Sample
from src.wings.evaluation.bfcl.decoding import decode_calls, is_unparsed
from src.wings.evaluation.bfcl.prompting import TurnWording, build_prompt
from src.wings.evaluation.bfcl.scores import score_records

Wording = TurnWording | Literal["native"]

STEP_LIMIT = 20
"""Executed steps of a turn; a case is stopped after one more (the package's MAXIMUM_STEP_LIMIT)."""

_MAX_RESULT = 2000
"""Characters of a tool result that a record keeps; a directory listing of long_context has 100,000."""


def _prompt(case: Case, turns: Sequence[Turn], wording: Wording) -> ChatPrompt | OpenPrompt:
    """The prompt for the next answer of a case."""
    if wording == "native":
        return OpenPrompt(tuple(tool_specs(case)), messages_of(turns))
    return build_prompt(case, turns, wording)


class CaseConversation(Conversation):
    """A multi-turn case on its way, by the package's `base_handler.inference_multi_turn_prompting`.

    A stopped case lacks turns, by which the checker knows it (`multi_turn:force_terminated`); one stopped in its last
    turn lacks none and is judged by what it did. One with an `error_type` has failed, whatever it did before.

    Args:
        case: what it is about.
        executor: runs the calls.
        wording: of the prompts.
    """

    def __init__(self, case: Case, executor: Sandbox, wording: Wording) -> None:
        super().__init__(CaseWorld(case, executor), STEP_LIMIT)
        self.case = case
        self._wording = wording
        self.next_turn()

    def prompt(self) -> ChatPrompt | OpenPrompt:
        """In the benchmark's wording."""
        return _prompt(self.case, self.turns, self._wording)

    def calls_of(self, answer: Answer) -> tuple[ToolCall, ...]:
        """By the published handler's rule."""
        return decode_calls(answer.published)

    def next_turn(self) -> bool:
        """The case's next messages."""
        index = len(self.turns)
        if index < len(self.case.question):
            self.turns.append(Turn(turn_messages(self.case, index)))
        return index < len(self.case.question)


class Bfcl(Benchmark):
    """The 17 categories of `bfcl-eval==2025.6.14`, judged by its own checkers; see `scores.aggregate` for the scores.

    A prompt that does not fit the model fails its case, irrelevance included: the package, which takes its own error
    message for the answer, passes that.
    """

    name = "bfcl"

    def __init__(
        self,
        categories: Sequence[str] = ("all",),
        turn_wording: Wording = "official",
        time_limit: float = 10.0,
        memory_limit_mb: int = 1024,
        max_concurrent: int = 200,
        on_missing: Literal["error", "skip"] = "error",
        layout: str | None = None,
    ) -> None:
        """Nothing is read before `samples`, and no process started before `run`.

        Args:
            categories: names of categories or of groups: all, single_turn, non_live, live, multi_turn.
            turn_wording: of the prompts, see `prompting`; `native` is the benchmark's function-calling mode: tools and
                messages for the model's own template (prompt.layout=native), answers in its own format.
            time_limit: seconds for the calls of one case.
            memory_limit_mb: MiB for them.
            max_concurrent: multi-turn cases under way at once, which are lost if the run is interrupted.
            on_missing: what a run does where bfcl-eval is not installed: stop before it starts, or leave this out.
            layout: of the run's prompts, which must be `native` where the wording is; None: not looked at.

        Raises:
            ValueError: an unknown category, wording or `on_missing`, or a limit that leaves no room.
        """
        for key, value, choices in (
            ("turn_wording", turn_wording, (*get_args(TurnWording), "native")),
            ("on_missing", on_missing, ("error", "skip")),
        ):
            if value not in choices:
                raise ConfigError(f"benchmark.bfcl.{key}: expected {' or '.join(map(repr, choices))}, found {value!r}.")
        if turn_wording == "native" and layout not in (None, "native"):
            raise ConfigError(
                f"benchmark.bfcl.turn_wording=native: expected prompt.layout=native, found {layout}. Set it, or take "
                "benchmark=[bfcl]."
            )
        if max_concurrent < 1:
            raise ConfigError(f"benchmark.bfcl.max_concurrent: expected at least 1, found {max_concurrent}.")
        check_limits("benchmark.bfcl", time_limit, memory_limit_mb)
        self.on_missing = on_missing
        self._categories = choose_categories(categories)
        self._wording = turn_wording
        self._sandbox = Sandbox(time_limit=time_limit, memory_limit_mb=memory_limit_mb)
        self._max_concurrent = max_concurrent
        self._samples: list[Sample] = []

    def samples(self) -> Sequence[Sample]:
        """The cases of the chosen categories, in the package's order; ids are the package's.

        Raises:
            BenchmarkDataError: bfcl-eval is not installed, of another version, or damaged.
        """
        if not self._samples:
            cases = (case for category in self._categories for case in load_cases(category))
            self._samples = [Sample(case.id, case.category, case) for case in cases]
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Generate) -> Iterator[Record]:
        """Single-turn cases in one go, then the multi-turn ones in lock-step."""
        cases: list[Case] = [sample.data for sample in samples]
        single = [case for case in cases if not is_multi_turn(case.category)]
        multi = (CaseConversation(case, self._sandbox, self._wording) for case in cases if is_multi_turn(case.category))
        with self._sandbox:
            prompts = [_prompt(case, [Turn(turn_messages(case, 0))], self._wording) for case in single]
            for index, answer in generate(prompts):
                yield self._judge_answer(single[index], answer)
            for conversation in play(multi, generate, concurrent=self._max_concurrent):
                yield self._judge_conversation(conversation)

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """See `scores.score_records`."""
        return score_records(records)

    def _judge_answer(self, case: Case, answer: Answer) -> Record:
        calls = decode_calls(answer.published)
        if answer.finish == "context":
            verdict = Verdict(False, "context_exceeded", "The prompt does not fit the model.")
        else:
            verdict = self._sandbox.check_single_turn(case.entry, case.category, case.answer, calls)
        details = {"text": answer.text, "calls": _lines(calls), "tokens": answer.tokens}
        return _record(case, verdict, [answer.text], answer.finish == "length", details)

    def _judge_conversation(self, conversation: CaseConversation) -> Record:
        case = conversation.case
        if conversation.error_type:
            verdict = Verdict(False, conversation.error_type, f"Cannot go on in turn {len(conversation.turns) - 1}.")
        else:
            verdict = self._sandbox.check_multi_turn(case.entry, case.answer, conversation.calls())
        turns: list[JsonValue] = [
            [
                {"text": step.text, "calls": _lines(step.calls), "results": [_clip(result) for result in step.results]}
                for step in turn.steps
            ]
            for turn in conversation.turns
        ]
        texts = [step.text for turn in conversation.turns for step in turn.steps]
        details: dict[str, JsonValue] = {"turns": turns, "tokens": conversation.tokens}
        return _record(case, verdict, texts, conversation.truncated > 0, details)


def _record(
    case: Case, verdict: Verdict, texts: Iterable[str], truncated: bool, details: Mapping[str, JsonValue]
) -> Record:
    outcome = {"error_type": verdict.error_type, "error": verdict.error, "truncated": truncated}
    outcome[UNPARSED] = any(map(is_unparsed, texts))
    return Record(case.id, case.category, verdict.passed, details={**details, **outcome})


def _lines(calls: Sequence[ToolCall]) -> list[JsonValue]:
    """Calls as their lines, which unlike their values are strings whatever the model wrote (`NaN` is no JSON)."""
    return [well_formed(call_line(call)) for call in calls]


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_RESULT else f"{text[:_MAX_RESULT]}… ({len(text)} characters)"
