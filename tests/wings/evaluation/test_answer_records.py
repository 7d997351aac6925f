"""The store of records: what was finished is read back, what was torn is not, what is damaged is named."""

import json

import pytest

from src.wings.evaluation.answer_records import RecordError, RecordStore
from src.wings.evaluation.benchmark import Record

RECORDS = [
    Record("a/0", "one", True, {"strict": 0.1}, {"text": "Grüße\u2028\ud800\n", "calls": [{"name": "f"}, None]}),
    Record("a/1", "two", False),
]


@pytest.fixture
def store(tmp_path) -> RecordStore:
    store = RecordStore(tmp_path / "toy.jsonl")
    for record in RECORDS:
        store.append(record)
    return store


def test_records_come_back_equal(store):
    assert store.read() == RECORDS
    assert len(store.path.read_bytes().splitlines()) == 2
    store.rewrite(RECORDS[::-1])
    assert store.read() == RECORDS[::-1]


def test_no_file_is_no_records(tmp_path):
    assert RecordStore(tmp_path / "none.jsonl").read() == []


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_its_sample_is_written_again(store, cut):
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-cut])  # a cut of 1 takes the line break only: not finished either
    assert store.read() == RECORDS[:1]
    store.append(RECORDS[1])
    assert store.path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a/9", "cat', r"toy.jsonl, line 2: expected a JSON object, found b'{\"id\": \"a/9\", \"cat'"),
        ("[1]", r"line 2: expected an object with the keys \['category', .*'passed'\], found list"),
        ('{"id": "a/9"}', r"line 2: expected an object with the keys .*, found \['id'\]"),
        (
            '{"id": "x", "category": "y", "passed": 1, "metrics": {}, "details": {}}',
            r"line 2: expected 'passed' to be a bool, found 1",
        ),
        (
            '{"id": "a/0", "category": "y", "passed": true, "metrics": {}, "details": {}}',
            r"line 2: expected an id that no line above has, found 'a/0' again",
        ),
    ],
)
def test_a_bad_line_in_the_middle_is_an_error(store, line, message):
    first, second = store.path.read_text().splitlines()
    store.path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(RecordError, match=message):
        store.read()


def test_details_nested_too_deep_for_json_are_left_out(tmp_path):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    store = RecordStore(tmp_path / "toy.jsonl")
    store.append(Record("a", "b", False, {"strict": 1.0}, {"calls": deep}))
    (found,) = store.read()
    assert (found.id, found.passed, found.metrics) == ("a", False, {"strict": 1.0})
    assert json.dumps(found.details) == '{"omitted": "nested too deep for JSON"}'
