"""`rollouts.jsonl` read back: whole, old, half written, damaged."""

import json

import pytest

from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.known import format_named
from src.wings.reporting.inspector.comparing import Failure
from src.wings.reporting.inspector.rollout_records import InspectorError, NoSamplesError, RolloutFile
from tests.wings.reporting.inspector.samples import CALL, GOLD, HOSTILE, group, old_record, record, run_folder

GOLD_CALL = ToolCall(GOLD["name"], GOLD["parameters"])


def test_groups_are_what_was_written(tmp_path):
    records = [*group(0), *group(0, "doc/1", size=3), *group(5, "doc/1"), *group(5, "doc/1")]
    file = RolloutFile(run_folder(tmp_path, records))
    assert [place[:2] for place in file.places] == [(0, "doc/0"), (0, "doc/1"), (5, "doc/1"), (5, "doc/1")]
    assert file.steps == [0, 5]
    first, last = file.read([file.places[0], file.places[1]])
    assert len(first.completions) == 2 and len(last.completions) == 3
    assert first.prompt == "system\nWeather in Oslo?" and first.gold == (GOLD_CALL,)
    shown = first.completions[1]
    for name, column in shown.columns.items():
        assert column == records[1][name]
    assert (shown.tokens, shown.regions, shown.reward) == (records[1]["tokens"], records[1]["regions"], 0.5)


def test_a_model_s_own_format_is_read_with_its_tools(tmp_path):
    """Typed values, which the text does not tell; and a completion that was cut has no end."""
    target = Message("assistant", calls=(ToolCall("sky", {"days": 3, "name": "3"}),))
    tool = {"name": "sky", "parameters": {"days": {"type": "integer"}, "name": {"type": "string"}}}
    of_format = {"text": format_named("qwen3_xml").step_text(target), "output_format": "qwen3_xml", "tools": [tool]}
    gold = [{"name": "sky", "parameters": {"days": 3, "name": "3"}}]
    first = record(**of_format, gold_calls=gold, format=1.0, exact_match=1.0)
    second = record(completion=1, text=of_format["text"], format=0.0, exact_match=0.0, finish_reason="length")
    (found,) = RolloutFile(run_folder(tmp_path, [first, second])).read([RolloutFile(tmp_path).places[0]])
    assert [one.parsed.calls for one in found.completions] == [target.calls] * 2
    assert [all(one.parsed.closed) for one in found.completions] == [True, False]
    assert [found.failure(one) for one in found.completions] == [Failure.CORRECT, Failure.TRUNCATED]


def test_runs_of_older_versions(tmp_path):
    file = RolloutFile(run_folder(tmp_path, [old_record(), old_record(completion=1)]))
    (found,) = file.read(file.places)
    assert found.prompt is None and found.gold == (GOLD_CALL,)
    assert found.completions[0].columns["loss_terms"] is None and found.completions[0].columns["weights"]


def test_keys_in_another_order_and_hostile_names(tmp_path):
    records = [dict(reversed(record(example=f"doc/{text}").items())) for text in HOSTILE.values() if text.isascii()]
    file = RolloutFile(run_folder(tmp_path, [*records, record(example='a"b\\/c')]))
    assert [place.example for place in file.places] == [one["example"] for one in records] + ['a"b\\/c']


def test_a_line_that_is_being_written_is_left_out(tmp_path, caplog):
    folder = run_folder(tmp_path, group(0) + group(5))
    path = folder / "rollouts.jsonl"
    path.write_text(path.read_text()[:-40])
    file = RolloutFile(folder)
    assert "the last line is not whole" in caplog.text
    assert [len(one.completions) for one in file.read(file.places)] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["a"]}, "line 2: expected a logged completion, found 4 regions of 1 tokens"),
        ({"weights": [1.0]}, "line 2: expected a logged completion, found 1 weights of 4 tokens"),
        ({"regions": ["format"] * 3 + ["tool"]}, "found region 'tool'; known are"),
        ({"text": 3}, "found 3 as text"),
        ({"gold_calls": [{"name": "x"}]}, "found no 'parameters'"),
        ({"output_format": "xml"}, "found prompt.format: expected one of rest"),
        ({"tools": [{"parameters": {}}]}, "line 2: expected a logged completion"),
        ({"reward": None}, "line 2: expected a logged completion"),
    ],
)
def test_a_record_that_is_none_is_named(changes, message, tmp_path):
    file = RolloutFile(run_folder(tmp_path, [record(), record(1, **changes)]))
    with pytest.raises(InspectorError, match=message):
        list(file.read(file.places))


def test_lines_that_are_no_records_are_named(tmp_path):
    folder = run_folder(tmp_path, [record()])
    for line in ("[1, 2]", "nonsense", json.dumps({"rollout_step": 1})):
        (folder / "rollouts.jsonl").write_text(json.dumps(record()) + "\n" + line + "\n")
        with pytest.raises(InspectorError, match=r"rollouts.jsonl, line 2: expected an? "):
            RolloutFile(folder)


def test_no_samples(tmp_path):
    with pytest.raises(NoSamplesError, match=r"found no file\. Give a run folder"):
        RolloutFile(tmp_path)
    (tmp_path / "rollouts.jsonl").touch()
    with pytest.raises(NoSamplesError, match=r"found none\. Wait for the run's first rollout step"):
        RolloutFile(tmp_path)


def test_hostile_texts_come_back_as_they_are(tmp_path):
    records = [record(text=CALL % json.dumps(text)[1:-1], tokens=[text] * 4) for text in HOSTILE.values()]
    records = [one for one in records if "\ud800" not in one["tokens"][0]]  # never logged: texts are decoded UTF-8
    file = RolloutFile(run_folder(tmp_path, records))
    found = [one.completions[0] for one in file.read(file.places)]
    assert [one.tokens for one in found] == [one["tokens"] for one in records]
    assert all(one.parsed.calls is not None for one in found)
