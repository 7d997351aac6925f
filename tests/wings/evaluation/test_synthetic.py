"""Dialogues played by an expert who knows them, and by ones who err."""

from collections import Counter

from src.data.rendering import compact_prompt
from src.data.sources.synthetic.source import KINDS, SyntheticSource
from src.environments.conversation import Answer
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import step_text
from src.wings.evaluation.synthetic import MAX_STEPS, SyntheticBenchmark


def _expert(benchmark, change=lambda message: message):
    """Answers with the gold step that follows the prompt's user message, then with a response."""
    calls_for: dict[tuple[str, str], Message] = {}  # by the first and the last user message
    for sample in benchmark.samples():
        messages = sample.data.messages
        for index, message in enumerate(messages):
            if message.role == "user":
                calls_for[messages[0].text, message.text] = messages[index + 1]

    def generate(prompts):
        for index, prompt in enumerate(prompts):
            users = prompt.user.split("<user> ")[1:]
            first, last = (users[i].partition(" </user>") for i in (0, -1))
            step = Message("assistant", "Done.", "Hm.") if "<obs>" in last[2] else calls_for[first[0], last[0]]
            yield index, Answer.of(step_text(change(step)))

    return generate


def test_the_expert_passes_every_dialogue():
    benchmark = SyntheticBenchmark(size=200, seed=7)
    report = benchmark.run(_expert(benchmark))
    assert set(report.scores.values()) == {1.0}
    assert set(report.scores) == {*KINDS, "overall"} and sum(report.counts.values()) == 200
    assert not any(record.details["error"] for record in report.records)


def test_a_follow_up_uses_what_the_tools_said():
    """The second call of a follow-up carries a value that only the first call's result holds."""
    benchmark = SyntheticBenchmark(size=60, seed=7)
    report = benchmark.run(_expert(benchmark))
    for record in report.records:
        if record.category == "follow_up":
            messages = record.details["messages"]
            _, second = (m["calls"][0] for m in messages if m["calls"])
            assert str(next(iter(second[1].values()))) in messages[2]["text"]
            assert [m["role"] for m in messages] == ["user", "assistant", "observation", "assistant"] * 2


def test_what_fails_and_why():
    benchmark = SyntheticBenchmark(size=120, seed=7)
    categories = Counter(sample.category for sample in benchmark.samples())

    def extra_call(step):
        calls = (*step.calls, ToolCall("no_such_tool", {})) if step.calls else ()
        return Message("assistant", step.text, step.thought, calls)

    report = benchmark.run(_expert(benchmark, extra_call))
    assert report.scores["refusal"] == 1 and report.scores["overall"] == categories["refusal"] / 120
    failed = next(record for record in report.records if record.category == "single")
    assert failed.details["error"] == "turn 0: other calls than asked for"
    assert '{"error": "no tool no_such_tool"}' in failed.details["messages"][2]["text"]

    report = benchmark.run(lambda prompts: ((i, Answer.of("garbage <tool_call> {")) for i in range(len(prompts))))
    assert set(report.scores.values()) == {0.0}
    assert {r.details["error"] for r in report.records if r.category == "refusal"} == {"turn 0: no response"}


def test_calling_without_end_is_stopped():
    benchmark = SyntheticBenchmark(size=5, seed=7)
    call = step_text(Message("assistant", thought="Hm.", calls=(ToolCall("x", {}),)))
    asked = []

    def generate(prompts):
        asked.append(len(prompts))
        return ((i, Answer.of(call)) for i in range(len(prompts)))

    report = benchmark.run(generate)
    assert asked == [5] * (MAX_STEPS + 1)
    assert {record.details["error"] for record in report.records} == {"too many steps"}


def test_requests_are_never_trained_on():
    """Whatever the seed of the training split, its prompts are others."""
    prompts = {
        compact_prompt((), sample.data.messages[:1]).user for sample in SyntheticBenchmark(size=300, seed=3).samples()
    }
    for seed in (3, 4):
        trained = {
            compact_prompt((), example.history[:1]).user for example in SyntheticSource(2000, seed=seed).load("train")
        }
        assert not prompts & trained
