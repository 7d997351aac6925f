import json

import pytest

from src.environments.conversation import Answer
from src.errors import BenchmarkDataError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import step_text
from src.wings.evaluation.api_bank import ApiBank, published_verdict, strict_verdict
from src.wings.evaluation.benchmark import Subset
from tests.conftest import needs_shared_data

GOLD = ToolCall("Weather", {"city": "Oslo", "day": "1"})
RIGHT = '{"name": "Weather", "parameters": {"day": "1", "city": "Oslo"}}'
WRONG = '{"name": "Weather", "parameters": {"city": "Rome", "day": "1"}}'
BLOCK = "<think> Hm. </think>\n<tool_call>\n{}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "published", "strict"),
    [
        (BLOCK.format(RIGHT), True, True),
        (BLOCK.format(WRONG), False, False),
        ("", False, False),
        ("<response> It rains. </response>", False, False),
        # further calls cost nothing, whatever they are
        (BLOCK.format(f"{WRONG}\n{RIGHT}\n{WRONG}"), True, False),
        # no tag is needed, nor a closing one
        (RIGHT, True, False),
        (f"<tool_call>{RIGHT}", True, False),
        # of several blocks the last counts
        (BLOCK.format(RIGHT) + BLOCK.format(WRONG), False, False),
        (BLOCK.format(WRONG) + BLOCK.format(RIGHT), True, False),
        # lines that are no JSON are dropped
        (BLOCK.format(f"Let me see.\n{RIGHT}"), True, False),
        # an object without both keys is taken for the parameters of the right tool
        (BLOCK.format('{"city": "Oslo", "day": "1"}'), True, False),
        (BLOCK.format('{"name": "Weather", "arguments": {"city": "Oslo", "day": "1"}}'), False, False),
        # a string is parsed once more
        (BLOCK.format(json.dumps(RIGHT)), True, False),
        (BLOCK.format(f'"no JSON"\n{RIGHT}'), False, False),
        # a list is skipped; a number and null end the search
        (BLOCK.format(f"[1]\n{RIGHT}"), True, False),
        (BLOCK.format(f'["name", "parameters"]\n{RIGHT}'), False, False),
        (BLOCK.format(f"7\n{RIGHT}"), False, False),
        (BLOCK.format(f"null\n{RIGHT}"), False, False),
        # gold values are strings
        (BLOCK.format('{"name": "Weather", "parameters": {"city": "Oslo", "day": 1}}'), False, False),
        (BLOCK.format('{"name": "Weather", "parameters": {"city": "Oslo", "day": "1", "x": "2"}}'), False, False),
        (BLOCK.format("[" * 100_000), False, False),
        (BLOCK.format("9" * 5_000), False, False),
    ],
)
def test_published_and_strict_rules(text, published, strict):
    assert published_verdict(text, GOLD) is published
    assert strict_verdict(Answer.of(text), GOLD) is strict


def test_true_equals_one_only_by_the_published_rule():
    gold = ToolCall("Set", {"level": 1})
    text = BLOCK.format('{"name": "Set", "parameters": {"level": true}}')
    assert published_verdict(text, gold) and not strict_verdict(Answer.of(text), gold)


def _always(build):
    """Generate that answers each sample with `build(sample)`."""

    def made(bench):
        by_prompt = {sample.data.prompt: sample for sample in bench.samples()}
        return lambda prompts: ((i, Answer.of(build(by_prompt[p]))) for i, p in enumerate(prompts))

    return made


def _gold_text(sample, change=lambda call: call):
    return step_text(Message("assistant", thought="Hm.", calls=(change(sample.data.gold),)))


@needs_shared_data
def test_gold_passes_and_corrupted_gold_fails(shared_data):
    bench = ApiBank(shared_data / "api_bank")
    report = bench.run(_always(_gold_text)(bench))
    assert len(report.records) == 597 and set(report.scores.values()) == {1.0}
    assert report.counts == {"level_1": 399, "level_2": 67, "level_3": 131, "truncated": 0, "context_exceeded": 0}
    corruptions = (
        lambda call: ToolCall(call.name + "X", call.parameters),
        lambda call: ToolCall(call.name, {**call.parameters, "more": "1"}),
        lambda call: ToolCall(call.name, {key: f"{value}?" for key, value in call.parameters.items()} or {"a": "b"}),
        lambda call: ToolCall(call.name, dict(list(call.parameters.items())[1:]) if call.parameters else {"a": "b"}),
    )
    for change in corruptions:
        assert set(bench.run(_always(lambda s, c=change: _gold_text(s, c))(bench)).scores.values()) == {0.0}


@needs_shared_data
def test_an_empty_object_passes_seven_samples_and_none_strictly(shared_data):
    bench = ApiBank(shared_data / "api_bank")
    report = bench.run(_always(lambda sample: "<tool_call>\n{}\n</tool_call>")(bench))
    assert sum(record.passed for record in report.records) == 7
    assert report.scores["overall"] == 7 / 597 and report.scores["strict"] == 0


@needs_shared_data
def test_overall_is_micro(shared_data):
    """Right on all of level 2 and nothing else: 67 of 597."""
    bench = ApiBank(shared_data / "api_bank")
    report = bench.run(_always(lambda s: _gold_text(s) if s.category == "level_2" else "")(bench))
    assert report.scores["overall"] == 67 / 597
    assert (report.scores["level_1"], report.scores["level_2"], report.scores["strict_level_2"]) == (0, 1, 1)


@needs_shared_data
def test_a_subset_keeps_the_levels_shares(shared_data):
    """60 of 597: 40.1, 6.7 and 13.2 samples."""
    bench = ApiBank(shared_data / "api_bank")
    report = bench.run(_always(_gold_text)(bench), subset=Subset(60, seed=3))
    assert [report.counts[f"level_{i}"] for i in (1, 2, 3)] == [40, 7, 13]
    again = bench.run(_always(_gold_text)(bench), subset=Subset(60, seed=3))
    other = bench.run(_always(_gold_text)(bench), subset=Subset(60, seed=4))
    assert again.records == report.records
    assert {r.id for r in other.records} != {r.id for r in report.records}


@needs_shared_data
def test_levels_can_be_chosen(shared_data):
    bench = ApiBank(shared_data / "api_bank", levels=[2])
    report = bench.run(_always(_gold_text)(bench))
    assert len(report.records) == 67 and set(report.scores) == {"level_2", "strict_level_2", "overall", "strict"}
    with pytest.raises(ValueError, match=r"levels: expected some of \[1, 2, 3\], found \[0, 2\]"):
        ApiBank(shared_data / "api_bank", levels=[0, 2])


def test_missing_and_broken_data_are_named(tmp_path):
    with pytest.raises(BenchmarkDataError, match=r"benchmark\.api_bank\.path: .*level-1-api_processed\.json.*make api"):
        ApiBank(tmp_path).samples()
    for level in (1, 2, 3):
        (tmp_path / f"level-{level}-api_processed.json").write_text('[{"system": "s", "user": "u"}]')
    with pytest.raises(BenchmarkDataError, match=r"level-1-api_processed\.json\[0\]: expected .* KeyError: 'answer'"):
        ApiBank(tmp_path).samples()
    (tmp_path / "level-1-api_processed.json").write_text("[")
    with pytest.raises(BenchmarkDataError, match=r"level-1-api_processed\.json: expected a JSON list"):
        ApiBank(tmp_path).samples()
    with pytest.raises(ValueError, match="on_missing: expected 'error' or 'skip', found 'maybe'"):
        ApiBank(tmp_path, on_missing="maybe")
