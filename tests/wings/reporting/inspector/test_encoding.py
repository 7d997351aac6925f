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
from tests.wings.reporting.inspector.samples import HOSTILE, group, run_folder

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
