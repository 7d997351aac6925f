"""The published mix: fixtures in both of its shapes, and all real records."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from src.data.sources.base import dialogue_key
from src.data.sources.rlla import RllaSource, parse_target
from src.protocol.dialogue import THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE, ChatPrompt, DataError, ToolCall

REAL = Path(__file__).parents[4] / "shared" / "data" / "rlla" / "rlla_sft.json"
SYSTEM = "You are helpful.\n1. Name: tide_times\nDescription: Tides.\nParameters: {}"
USER = "**Dialogue Records History**\n<user> Tides in Hull? </user>"
CALL = '{"name": "tide_times", "parameters": {"harbour": "Hull"}}'
OUTPUT = f"<think> Look it up. </think>\n<tool_call>\n{CALL}\n</tool_call>"


def sft(output: Any = OUTPUT, **changes: Any) -> dict[str, Any]:
    base = {"instruction": SYSTEM, "input": USER, "output": output}
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def published(ground_truth: str = OUTPUT) -> dict[str, Any]:
    return {
        "data_source": "rlla",
        "prompt": [{"content": SYSTEM, "role": "system"}, {"content": USER, "role": "user"}],
        "reward_model": {"ground_truth": ground_truth, "style": "rule"},
        "extra_info": {"index": 0, "split": "train"},
    }


def load(folder: Path, *records: dict[str, Any], **options: Any) -> RllaSource:
    path = folder / "rlla.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return RllaSource(path=str(path), **options)


def test_the_sft_shape_keeps_the_prompt_verbatim(tmp_path: Path) -> None:
    (example,) = load(tmp_path, sft()).load("train")

    assert example.prompt == ChatPrompt(SYSTEM, USER)
    assert (example.tools, example.history) == ((), ())
    assert example.target.calls == (ToolCall("tide_times", {"harbour": "Hull"}),)
    assert (example.target.thought, example.target.text) == ("Look it up.", "")
    assert (example.source, example.tags) == ("rlla", ("single_call",))


def test_the_published_parquet_reads_like_the_json(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([published()]), tmp_path / "train.parquet")
    (from_parquet,) = RllaSource(path=str(tmp_path)).load("train")
    (from_json,) = load(tmp_path, sft()).load("train")

    assert (from_parquet.prompt, from_parquet.target) == (from_json.prompt, from_json.target)
    assert from_parquet.id == "train-0"


@pytest.mark.parametrize(
    ("text", "calls", "response", "tag"),
    [
        ("<think> a </think>\n<response> Hi!\nYou. </response>", 0, "Hi!\nYou.", "response"),
        (f"<think>a</think><tool_call>\n{CALL}\n{CALL}\n</tool_call>", 2, "", "parallel_calls"),
        (
            f"<think> a </think>\n<tool_call>\n{CALL}\n</tool_call>\n<response> On it. </response>\n",
            1,
            "On it.",
            "call_and_response",
        ),
        (
            f"<think> no <tool_call> and no </response> <think> here </think>\n<tool_call>\n{CALL}\n</tool_call>",
            1,
            "",
            "single_call",
        ),
    ],
)
def test_each_kind_of_target(tmp_path: Path, text: str, calls: int, response: str, tag: str) -> None:
    (example,) = load(tmp_path, sft(text)).load("train")

    assert (len(example.target.calls), example.target.text, example.tags) == (calls, response, (tag,))


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think></think><response>x</response>", THOUGHT_OF_RESPONSE),
        (f"<think> </think><tool_call>\n{CALL}\n</tool_call>", THOUGHT_OF_CALLS),
    ],
)
def test_an_empty_thought_becomes_the_published_one(tmp_path: Path, text: str, thought: str) -> None:
    (example,) = load(tmp_path, sft(text)).load("train")

    assert example.target.thought == thought


def test_tags_inside_think_are_text() -> None:
    text = f"<think> no <tool_call>, </response> or <think> here </think>\n<tool_call>\n{CALL}\n</tool_call>"

    assert parse_target(text, "x", "output").thought == "no <tool_call>, </response> or <think> here"


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": (sft(...), ("field 'output'", "a string under this key, found ['input', 'instruction']")),
    "type": (sft(instruction=["x"]), ("field 'instruction'", "expected a string, found ['x']")),
    "no-think": (sft(f"<tool_call>\n{CALL}\n</tool_call>"), ("field 'output'", "<think>, then", "found '<tool_call>'")),
    "bare": (sft("Hello."), ("field 'output'", "<think>, then <tool_call> and/or <response>", "found 'Hello.'")),
    "only-think": (sft("<think> a </think>"), ("<think>, then <tool_call>", "found '<think>'")),
    "order": (
        sft(f"<think> a </think><response> b </response><tool_call>\n{CALL}\n</tool_call>"),
        ("each once and in this order", "found '<think> <response> <tool_call>'"),
    ),
    "open-think": (sft(f"<think> a\n<tool_call>\n{CALL}\n</tool_call>"), ("<think> closed by </think>",)),
    "open-call": (sft(f"<think> a </think>\n<tool_call>\n{CALL}"), ("<tool_call> closed by </tool_call>",)),
    "open-response": (sft("<think> a </think>\n<response> b"), ("<response> closed by </response>",)),
    "call": (
        sft(f'<think> a </think>\n<tool_call>\n{CALL}\n{{"name": "tide_times", "param\n</tool_call>'),
        ("field 'output'", 'calls as {"name": …, "parameters": {…}}, one a line', '"tide_times", "param'),
    ),
    "no-call": (sft("<think> a </think>\n<tool_call>\n</tool_call>"), ("calls as",)),
    "twice": (
        sft(OUTPUT.replace("}}", ', "harbour": "Leith"}}')),
        ("field 'output'", "calls as", '"harbour": "Hull", "harbour": "Leith"'),
    ),
    "deep": (sft(f"<think> a </think>\n<tool_call>\n{'[' * 5000}\n</tool_call>"), ("calls as", "found '[[[[")),
    "surrogate": (
        sft(OUTPUT.replace("Hull", "Hull\\ud83d")),
        ("field 'output[0].tide_times.harbour'", "text without a lone surrogate"),
    ),
    "outside": (sft(OUTPUT + " Done."), ("no text outside the fields, found 'Done.'",)),
    "empty": (sft("<think> a </think>\n<response> </response>"), ("text inside <response>",)),
    "roles": ({**published(), "prompt": [{"role": "user", "content": "x"}]}, ("a system and a user message",)),
    "truth": (
        {**published(), "reward_model": {"style": "rule"}},
        ("field 'reward_model.ground_truth'", "under this key"),
    ),
    "content": (
        {**published(), "prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": None}]},
        ("field 'prompt[1].content'", "expected a string, found None"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops_the_load(tmp_path: Path, kind: str) -> None:
    bad, parts = BAD[kind]
    with pytest.raises(DataError) as error:
        load(tmp_path, sft(), bad).load("train")
    assert all(part in str(error.value) for part in ("rlla.json[1]: ", *parts)), str(error.value)


def test_a_truncated_file_is_named_with_the_spot(tmp_path: Path) -> None:
    source = load(tmp_path, sft())
    Path(str(source.path)).write_text(json.dumps([sft()])[:-5])
    with pytest.raises(DataError, match=r"rlla\.json: field 'file': expected valid JSON \(.* at line 1 column \d+\)"):
        source.load("train")


@pytest.mark.skipif(not REAL.exists(), reason=f"the real data is not at {REAL}")
def test_all_real_records_load() -> None:
    source = RllaSource(path=str(REAL), val_share=0.1, seed=3)
    train, val = source.load("train"), source.load("val")
    records = json.loads(REAL.read_text(encoding="utf-8"))

    assert len(train) + len(val) == len(records) == 400
    by_id = {example.id: example for example in train + val}
    assert len(by_id) == 400
    for index, record in enumerate(records):
        example = by_id[f"rlla_sft-{index}"]
        assert example.prompt == ChatPrompt(record["instruction"], record["input"])
        assert example.target.thought == record["output"].split("</think>")[0].removeprefix("<think>").strip()
    # 346 targets with calls and 54 responses, counted by the tags after </think>
    assert Counter(example.tags[0] for example in train + val) == {
        "single_call": 187,
        "parallel_calls": 159,
        "response": 54,
    }
    # 398 dialogues by system prompt and first user message, two of them with two records: 40 dialogues held out
    assert len({dialogue_key(example) for example in val}) == 40
    assert not {dialogue_key(example) for example in val} & {dialogue_key(example) for example in train}
