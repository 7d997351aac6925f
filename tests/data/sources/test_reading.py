"""Reading files, folders and hub datasets."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.sources.reading import (
    SUFFIXES,
    Record,
    check_json,
    corpus_files,
    parse_json,
    read_records,
    require,
    shape_advice,
    shape_of,
    unread,
)
from src.protocol.dialogue import DataError

RECORDS = [{"query": "a", "n": 1}, {"query": "b – ü", "n": 2}, {"query": "c", "n": 3}]


def write(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records)
    if ".jsonl" in path.name:
        text = "\n\n".join(json.dumps(record) for record in records) + "\n"
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(records)
        with ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[Record]:
    """Records, none of them bad."""
    records = list(read_records(str(path)))
    assert not [record for record in records if isinstance(record, DataError)]
    return [record for record in records if isinstance(record, Record)]


def faults(path: Path) -> list[str]:
    """What is wrong with each bad record, without the folder."""
    found = [record for record in read_records(str(path)) if isinstance(record, DataError)]
    return [str(error).removeprefix(f"{path.parent}/") for error in found]


@pytest.mark.parametrize(
    ("file", "places"),
    [
        ("x.json", ["x.json[0]", "x.json[1]", "x.json[2]"]),
        ("x.json.gz", ["x.json.gz[0]", "x.json.gz[1]", "x.json.gz[2]"]),
        ("x.jsonl", ["x.jsonl:1", "x.jsonl:3", "x.jsonl:5"]),  # lines count the empty ones between
        ("x.jsonl.gz", ["x.jsonl.gz:1", "x.jsonl.gz:3", "x.jsonl.gz:5"]),
        ("x.parquet", ["x.parquet[0]", "x.parquet[1]", "x.parquet[2]"]),
        ("x.arrow", ["x.arrow[0]", "x.arrow[1]", "x.arrow[2]"]),
    ],
)
def test_each_format_gives_the_same_records_and_their_places(tmp_path: Path, file: str, places: list[str]) -> None:
    records = read(write(tmp_path / file))

    assert [record.value for record in records] == RECORDS
    assert [record.where for record in records] == [f"{tmp_path}/{place}" for place in places]
    assert [record.id for record in records] == (["x-1", "x-3", "x-5"] if "jsonl" in file else ["x-0", "x-1", "x-2"])


@pytest.mark.parametrize("file", ["x.json", "x.jsonl"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, file: str) -> None:
    path = write(tmp_path / file)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert [record.value for record in read(path)] == RECORDS


def test_json_lines_are_read_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('\n{"n": 1}\n\n{"n": 2\n{"n": 3}\n')

    assert [(one.value["n"], one.where, one.id) for one in read_records(str(path)) if isinstance(one, Record)] == [
        (1, f"{path}:2", "x-2"),
        (3, f"{path}:5", "x-5"),
    ]
    assert faults(path) == [
        "x.json:4: field 'line': expected valid JSON (Expecting ',' delimiter at line 1 column 8), found '{\"n\": 2'."
    ]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"version": 1, "data": RECORDS}, "data"),
        ({"train": RECORDS, "test": RECORDS[:1]}, "train"),
        ({"test": RECORDS[:1], "train": [*RECORDS, 7]}, "train"),
        ({"train": {"rows": 3}, "data": RECORDS}, "data"),
    ],
)
def test_the_list_inside_an_object_is_the_corpus(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    records = [record for record in read_records(str(path)) if isinstance(record, Record)]

    assert [record.value for record in records] == RECORDS
    assert records[2].where == f"{path}.{key}[2]"
    assert records[2].id == "x-2"
    if 7 in content[key]:
        assert faults(path) == ["x.json.train[3]: field 'record': expected an object, found 7."]


def test_an_empty_train_list_is_no_reason_to_read_the_test_list(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": [], "test": RECORDS}))

    assert read(path) == []


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.json", RECORDS[:1])
    write(tmp_path / "a.jsonl", RECORDS[1:])
    (tmp_path / "README.md").write_text("no corpus")

    assert [record.value["n"] for record in read_records(str(tmp_path))] == [2, 3, 1]


def test_a_folder_with_train_files_never_reads_its_test_file(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", RECORDS[:2])
    write(tmp_path / "test.parquet", RECORDS[2:])

    assert [record.value["n"] for record in read_records(str(tmp_path))] == [1, 2]


def test_a_clone_of_a_hub_dataset_is_read_for_its_train_files(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", RECORDS[:1])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", RECORDS[1:2])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", RECORDS)
    write(tmp_path / "train" / "0000.jsonl", RECORDS[2:])
    write(tmp_path / "default" / "train" / "0001.parquet", RECORDS[:1])
    write(tmp_path / "default" / "test" / "0002.parquet")
    write(tmp_path / "sample.json")
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "state.json"):
        (tmp_path / name).write_text("{}")

    assert [(record.value["n"], record.id) for record in read(tmp_path)] == [
        (1, "train-00000-of-00002-0"),
        (2, "train-00001-of-00002-0"),
        (1, "0001-0"),
        (3, "0000-1"),
    ]


def test_what_is_about_a_corpus_is_never_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "corpus.json")
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "._corpus.json"):
        write(tmp_path / name)

    assert corpus_files(str(tmp_path)) == [tmp_path / "corpus.json"]


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    saved = DatasetDict({"train": Dataset.from_list(RECORDS), "test": Dataset.from_list(RECORDS[:1])})
    saved.save_to_disk(tmp_path / "both")
    saved["train"].save_to_disk(tmp_path / "one")
    Dataset.load_from_disk(tmp_path / "one").map(lambda record: {"n": record["n"] + 1})
    assert len(list((tmp_path / "one").glob("cache-*.arrow"))) == 1

    assert [record.value for record in read(tmp_path / "both")] == RECORDS
    assert [record.value for record in read(tmp_path / "one")] == RECORDS


def test_files_of_one_stem_give_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("train.json", "train.parquet", "data/train.json", "train/x.jsonl"):
        write(tmp_path / name, RECORDS[:1])

    assert [record.id for record in read(tmp_path)] == [
        "data/train.json-0",
        "train/x.jsonl-1",
        "train.json-0",
        "train.parquet-0",
    ]


def nested(name: str, **arguments: Any) -> dict[str, Any]:
    return {"note": None, "answers": [{"name": name, "arguments": arguments}]}


def test_keys_that_arrow_filled_in_are_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [nested("weather", city="Oslo", tags=["a", None]), nested("stock", ticker="EQNR"), nested("ping")]
    path = write(tmp_path / "x.parquet", rows)

    assert [record.value for record in read(path)] == rows
    assert caplog.messages == [
        f"{path}: 6 nulls inside nested columns read as absent keys; Arrow fills them in. Publish such columns as JSON "
        "text to keep a null that was said."
    ]


JSON_COLUMNS: dict[str, Any] = {
    "query": "7",
    "tools": [{"name": "f", "parameters": {"x": {"type": "int"}}}],
    "answers": [{"name": "f", "arguments": {"x": None}}, {"name": "f", "arguments": {"x": ["1", 2]}}],
}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "hub"])
def test_json_columns_are_decoded_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    answers = datasets.List({"name": datasets.Value("string"), "arguments": datasets.Json()})
    features = datasets.Features({"query": datasets.Value("string"), "tools": datasets.Json(), "answers": answers})
    corpus = datasets.Dataset.from_list([JSON_COLUMNS], features=features)
    if kind == "arrow":
        corpus.save_to_disk(tmp_path / "x")
    else:
        (tmp_path / "x").mkdir()
        corpus.to_parquet(tmp_path / "x/train.parquet")
    place = str(tmp_path / "x")
    (record,) = read_records(None, hub_id=place) if kind == "hub" else read_records(place)

    assert isinstance(record, Record)
    assert record.value == JSON_COLUMNS


def test_json_columns_are_decoded_strictly(tmp_path: Path) -> None:
    texts = pa.array(['{"a": 1}', '{"a": 1, "a": 2}', '{"a"', "null", None])
    column = pa.ListArray.from_arrays([0, 2, 3, 5], pa.ExtensionArray.from_storage(pa.json_(), texts))
    parquet.write_table(pa.table({"x": column}), tmp_path / "x.parquet")

    assert faults(tmp_path / "x.parquet") == [
        "x.parquet[0]: field 'x[1].a': expected this key once in its object, found [1, 2].",
        "x.parquet[1]: field 'x[0]': expected valid JSON (Expecting ':' delimiter at line 1 column 5), found '{\"a\"'.",
    ]
    (record,) = [one for one in read_records(str(tmp_path)) if isinstance(one, Record)]
    assert (record.value, record.id) == ({"x": [None, None]}, "x-2")


def test_map_columns_and_missing_numbers_stay_as_arrow_has_them(tmp_path: Path) -> None:
    pairs = pa.array([[("city", "Oslo"), ("day", None)]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"pairs": pairs, "score": [float("nan")], "day": pa.array([0], pa.date32())})
    parquet.write_table(table, tmp_path / "x.parquet")
    (record,) = read(tmp_path / "x.parquet")

    assert record.value["pairs"] == [("city", "Oslo"), ("day", None)]
    assert str(record.value["score"]) == "nan"


def test_numbers_in_nested_columns_are_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [nested("f", share=0.5), nested("f", share=float("nan"))])

    assert faults(path) == ["x.parquet[1]: field 'answers[0].arguments.share': expected a finite number, found nan."]


@pytest.mark.parametrize("file", ["train.jsonl", "train.parquet"])
def test_a_hub_dataset_is_read_by_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [nested("weather", city="Oslo"), nested("stock", ticker="EQNR")]
    write(tmp_path / "corpus" / file, rows)
    caplog.set_level(logging.WARNING, "src")

    records = list(read_records(None, hub_id=str(tmp_path / "corpus")))

    assert [record.value for record in records if isinstance(record, Record)] == rows
    assert [record.where for record in records if isinstance(record, Record)][1] == f"{tmp_path / 'corpus'}[1]"
    assert "2 nulls inside nested columns" in caplog.text


def test_missing_locations_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 'path' or 'hub_id', found neither.*data\.path"):
        list(read_records(None))
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*gone'.*data\.path"):
        list(read_records(str(tmp_path / "gone")))
    with pytest.raises(
        FileNotFoundError, match=r"holds no \.json, .*, \.arrow file, nor do its folders data and train"
    ):
        list(read_records(str(tmp_path)))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"a file ending in \.json, \.jsonl, .*, \.arrow, found '.*x\.csv'"):
        list(read_records(str(tmp_path / "x.csv")))


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("x.json", b'[{"query": "a"}, {"query": "b', ("field 'file'", "valid JSON", "line 1 column 28")),
        ("x.json", b"not JSON", ("field 'file'", "valid JSON (Expecting value at line 1 column 1), found 'not JSON'")),
        ("x.json", b'{"query": "a"}', ("a JSON list of records", "Use .jsonl")),
        ("x.json", b'{"a": [{}], "b": [{}]}', ("a JSON list of records", "Use .jsonl")),
        ("x.json", b'[{"query": "\xff"}]', ("UTF-8 text (invalid start byte at byte 12)",)),
        ("x.json", b"[" * 5000, ("JSON that is not nested a thousand levels deep",)),
        ("x.json.gz", gzip.compress(b"[" * 99, mtime=0)[:-9], ("a whole gzip file (Compressed file ended before",)),
        ("x.jsonl.gz", b"{}", ("a whole gzip file (Not a gzipped file (b'{}')), found '2 bytes'",)),
        ("x.parquet", b"PAR1", ("a whole parquet file (",)),
        ("x.arrow", b"ARROW1", ("a whole Arrow file (",)),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, file: str, content: bytes, parts: tuple[str, ...]
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_records(str(tmp_path / file)))
    assert all(part in str(error.value) for part in (f"{file}: ", *parts)), str(error.value)


@pytest.mark.parametrize("file", ["x.json", "x.jsonl", "x.jsonl.gz", "x.parquet", "x.arrow"])
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n")
    with pytest.raises(DataError) as error:
        list(read_records(str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path / file}: field 'file': expected the data itself, found 'version https://git-lfs'. It is a Git LFS "
        "pointer: run `git lfs pull` in its repository."
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("7", "field 'record': expected an object, found 7."),
        ('{"a": 1, "a": 2}', "field 'a': expected this key once in its object, found [1, 2]."),
        (
            '{"a": [{"b": {"c": 1, "d": 0, "c": [2]}}]}',
            "field 'a[0].b.c': expected this key once in its object, found [1, [2]].",
        ),
        ('{"a": {"b": NaN}}', "field 'a.b': expected a finite number, found nan."),
        ('{"a": [0, -1e999]}', "field 'a[1]': expected a finite number, found -inf."),
        ('{"a": "x\\ud83d"}', "field 'a': expected text without a lone surrogate, found 'x\\ud83d'."),
        ('{"a": {"\\ude00": 1}}', "field 'a': expected keys without a lone surrogate, found '\\ude00'."),
        ('{"\\ude00": 1}', "field 'record': expected keys without a lone surrogate, found '\\ude00'."),
    ],
)
@pytest.mark.parametrize("file", ["x.json", "x.jsonl"])
def test_a_bad_record_is_named_and_the_others_are_read(tmp_path: Path, file: str, record: str, message: str) -> None:
    path = tmp_path / file
    path.write_text(f"[{{}}, {record}, {{}}]" if file == "x.json" else f"{{}}\n{record}\n{{}}\n")
    place = "x.json[1]" if file == "x.json" else "x.jsonl:2"

    assert faults(path) == [f"{place}: {message}"]
    assert sum(isinstance(one, Record) for one in read_records(str(path))) == 2


def test_a_line_that_does_not_parse_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": \n{"n": 2}\n{"n": "\xff"}\n')

    assert faults(path) == [
        "x.jsonl:1: field 'line': expected valid JSON (Expecting value at line 1 column 6), found '{\"n\":'.",
        "x.jsonl:3: field 'file': expected UTF-8 text (invalid start byte at byte 7), found b'{\"n\": \"\\xff\"}'.",
    ]
    assert [one.value for one in read_records(str(path)) if isinstance(one, Record)] == [{"n": 2}]


def test_whole_surrogate_pairs_are_text() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}', "x", "f") == {"a": "😀"}


def test_json_inside_a_field_is_named_by_its_path() -> None:
    with pytest.raises(
        DataError, match=r"^x\.json\[4\]: field 'answers\[0\]\.arguments\.city': expected this key once"
    ):
        parse_json('[{"arguments": {"city": "Oslo", "city": "Bergen"}}]', "x.json[4]", "answers")


def test_json_as_deep_as_it_can_be_read_is_checked_or_refused() -> None:
    for depth in (10, 400, 900, 990, 1100):
        value: Any = float("inf")
        for _ in range(depth):
            value = [value]
        with pytest.raises(DataError, match=r"expected (a finite number|JSON that is not nested a thousand levels)"):
            check_json(value, "x", "f")


JSON_PIECES = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"a"',
    '"train"',
    "1",
    "1e999",
    "NaN",
    "\n",
    " ",
    '"\\ud83d"',
    "null",
    "{}",
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    suffix=st.sampled_from(SUFFIXES),
    packed=st.booleans(),
    content=st.binary(max_size=60)
    | st.lists(st.sampled_from(JSON_PIECES), max_size=12).map(lambda parts: "".join(parts).encode()),
)
def test_no_bytes_raise_anything_but_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, packed: bool, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(gzip.compress(content) if packed and path.suffix == ".gz" else content)
    try:
        for one in read_records(str(path)):
            assert isinstance(one, Record) or str(one).startswith(str(path))
    except DataError as error:
        assert str(error).startswith(str(path))


def test_require_names_a_missing_key_and_a_wrong_type() -> None:
    with pytest.raises(DataError, match=r"x\[3\]: field 'a\.value': expected a string under this key, found \['k'\]"):
        require({"k": 1}, "value", str, "x[3]", "a.")
    with pytest.raises(DataError, match=r"x\[3\]: field 'value': expected a list, found 'text'"):
        require({"value": "text"}, "value", list, "x[3]")


TOOLACE = {"system": 'Tools: [{"name": "f", "parameters": {}}]', "conversations": []}


@pytest.mark.parametrize(
    ("record", "shape"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "[]", "tools": None, "id": 7}, "messages"),
        ({"conversations": [], "tools": "[]", "system": "Be kind."}, "sharegpt"),
        ({"conversations": []}, "sharegpt"),
        ({"conversations": [], "system": None}, "sharegpt"),
        (TOOLACE, "toolace"),
        ({"conversations": [], "system": "Be kind."}, None),  # either of the two
        ({"query": "?", "tools": "[]", "answers": "[]"}, "xlam"),
        ({"query": "?", "answers": "[]"}, None),
        ({"prompt": [], "reward_model": {"ground_truth": ""}}, "rlla"),
        ({"instruction": "", "input": "", "output": "<think> a </think>"}, "rlla"),
        ({"instruction": "", "input": "", "output": "Hi."}, None),
        ({"messages": [], "conversations": []}, None),
        ({}, None),
    ],
)
def test_known_shapes_are_told_apart(record: dict[str, Any], shape: str | None) -> None:
    assert shape_of(record) == shape


def test_advice_names_the_config_for_a_shape() -> None:
    assert shape_advice(TOOLACE, "xlam") == "This record has the columns system, conversations: use data=toolace."
    assert shape_advice(TOOLACE, "toolace") == shape_advice(TOOLACE, "a source of one's own") == shape_advice({}) == ""
    many = {"messages": [], **dict.fromkeys("abcdefg")}
    rows_of_trl = {"prompt": [{"role": "user", "content": "Hi."}], "completion": [], "tools": []}
    assert shape_advice(rows_of_trl, "messages").startswith("Join the lists of prompt and completion in one column")
    assert shape_advice(many) == "This record has the columns messages, a, b, c, d, e, …: use data=messages."


def test_a_file_that_is_not_read_is_named_with_the_config_for_it(tmp_path: Path) -> None:
    known, other = write(tmp_path / "a.jsonl", [{"messages": [], "tools": []}]), write(tmp_path / "b.json")
    said = "data.path: the chosen corpus reads no"

    assert unread(str(known)) == f"{said} '{known}'. This record has the columns messages, tools: use data=messages."
    for path in (other, tmp_path / "none.json", tmp_path / "a.csv"):
        assert unread(str(path)) == f"{said} '{path}'. Choose one that does with data=NAME."
