"""The page's JSON gives back the very numbers and texts; nothing in it can end its script."""

import json
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.protocol.types import Region
from src.wings.reporting.inspector.encoding import CODES, Encoder, encode_numbers, names
from src.wings.reporting.inspector.rollout_records import COLUMNS, RolloutFile
from src.wings.reporting.inspector.section import for_script
from tests.wings.reporting.inspector.samples import CALL, HOSTILE, episode, episode_record, group, run_folder

rounded = st.floats(-50, 50).map(lambda value: round(value, 5))
six_digits = st.floats(-1, 1).map(lambda value: float(f"{value:.6g}"))
special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, 12345678.25])


def decoded(encoded):
    """As `assets/decode.js` does."""
    if encoded is None or isinstance(encoded, list):
        return encoded and [whole / 100_000 for whole in encoded]
    return encoded["f"] if "f" in encoded else [encoded["v"][CODES.index(code)] for code in encoded["c"]]


@given(st.lists(st.one_of(rounded, six_digits, special), max_size=80))
def test_numbers_come_back_exactly(values):
    through = json.loads(for_script(encode_numbers(values)))
    found = decoded(through) or []
    assert found == [value if math.isfinite(value) else None for value in values]


def test_few_values_and_short_decimals_are_short():
    few = encode_numbers([1.27389, 0.76433] * 200)
    assert few == {"v": [1.27389, 0.76433], "c": "AB" * 200}
    assert encode_numbers([index / 1e5 for index in range(100)]) == list(range(100))


class Page(HTMLParser):
    """Tags of a page, and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.comments: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_comment(self, data):
        self.comments.append(data)

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_ends_its_script(text):
    page = Page()
    page.feed(f"<script>{for_script({text: [text]})}</script><p>after</p>")
    assert page.tags == ["script", "p"] and not page.comments
    assert json.loads(page.scripts[0]) == {text: [text]}
    assert page.scripts[0].isascii() and "\n" not in page.scripts[0]


def test_a_group_is_all_there(tmp_path):
    records = group(3, size=2)
    records[1]["tokens"] = ["<think>", "\ufffd", "\ufffd", "<eos>"]  # a character of two tokens
    file = RolloutFile(run_folder(tmp_path, records))
    encoder = Encoder()
    (encoded,) = [encoder.group(0, one) for one in file.read(file.places)]
    lines, tokens = list(encoder.lines), list(encoder.tokens)
    assert encoded["step"] == 3 and encoded["source"] == "doc"
    assert "\n".join(lines[index] for index in encoded["prompt"]) == records[0]["prompt"]
    for one, source in zip(encoded["completions"], records, strict=True):
        assert [tokens[index] for index in one["tokens"]] == source["tokens"]
        assert [Region(int(digit)).label for digit in one["regions"]] == source["regions"]
        for name in COLUMNS:
            assert decoded(one[name]) == source[name]
        assert "\n".join(lines[index] for index in one["text"]) == source["text"]
        assert names()["kinds"][one["kind"]] == "wrong values"
    assert encoded["comparisons"] == [[["sky", "sky", 1, [["city", '"Rome"', '"Oslo"', 1]]]]]
    assert names()["states"][1] == "differs"


def encoded_episode(tmp_path, **changes):
    """The first completion of a group, and the text of some lines."""
    file = RolloutFile(run_folder(tmp_path, [episode_record(**changes)]))
    encoder = Encoder()
    (encoded,) = [encoder.group(0, one) for one in file.read(file.places)]
    lines = list(encoder.lines)
    return encoded, lambda indices: "\n".join(lines[index] for index in indices)


def test_an_episode_is_its_turns(tmp_path):
    encoded, text = encoded_episode(tmp_path)
    (completion,) = encoded["completions"]
    assert encoded["comparisons"] == [[]]  # a task has no gold calls
    assert completion["parts"] == [1.0, None, None, None, None, 0.0]
    assert completion["scores"] == {"state": 1.0, "answer": 0.5}
    assert "text" not in completion
    found = completion["episode"]
    assert (found["ending"], found["rewrites"], found["faults"]) == ("done", 1, {"malformed": 2, "tool_error": 1})
    first, second = found["turns"]
    assert [(turn["size"], turn["earned"], turn["advantage"]) for turn in (first, second)] == [
        (3, 0.25, -0.5),
        (2, 0.5, 1.5),
    ]
    assert [(who, text(said)) for who, said in first["observed"]] == [("user", "Weather in Oslo?")]
    assert [(who, text(said)) for who, said in second["observed"]] == [("result of sky", "rain")]
    assert (first["calls"], second["calls"]) == ([["sky", '{"city": "Oslo"}']], [])
    assert text(first["text"]) == CALL % "Oslo"  # which is not what its tokens say


def test_tokens_that_say_the_text_of_a_turn_are_enough(tmp_path):
    encoded, _ = encoded_episode(tmp_path, episode=episode("<think> Look.", "Rain."))
    assert ["text" in turn for turn in encoded["completions"][0]["episode"]["turns"]] == [False, False]


def test_endless_results_are_cut_and_say_by_how_much(tmp_path):
    told = episode(result="r" * 1_002_000)
    told["turns"][0]["calls"] *= 70
    told["turns"][1]["observed"] *= 70
    encoded, text = encoded_episode(tmp_path, episode=told)
    first, second = encoded["completions"][0]["episode"]["turns"]
    assert (len(first["calls"]), first["uncalled"], first["unseen"]) == (64, 6, 0)
    assert (len(second["observed"]), second["uncalled"], second["unseen"]) == (64, 0, 6)
    assert {text(said) for _, said in second["observed"]} == {"r" * 2000 + "… (1,000,000 more characters)"}
