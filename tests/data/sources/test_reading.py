"""Reading files, folders and hub datasets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from src.data.sources.reading import read_records, require
from src.protocol.dialogue import DataError

RECORDS = [{"query": "a", "n": 1}, {"query": "b – ü", "n": 2}, {"query": "c", "n": 3}]


def write(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("file", "places"),
    [
        ("x.json", ["x.json[0]", "x.json[1]", "x.json[2]"]),
        ("x.jsonl", ["x.jsonl:1", "x.jsonl:3", "x.jsonl:5"]),  # lines count the empty ones between
        ("x.parquet", ["x.parquet[0]", "x.parquet[1]", "x.parquet[2]"]),
    ],
)
def test_each_format_gives_the_same_records_and_their_places(tmp_path: Path, file: str, places: list[str]) -> None:
    records = list(read_records(str(write(tmp_path / file))))

    assert [record.value for record in records] == RECORDS
    assert [record.where for record in records] == [f"{tmp_path}/{place}" for place in places]
    assert len({record.id for record in records}) == 3


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.json", RECORDS[:1])
    write(tmp_path / "a.jsonl", RECORDS[1:])
    (tmp_path / "README.md").write_text("no corpus")

    assert [record.value["n"] for record in read_records(str(tmp_path))] == [2, 3, 1]


def test_a_folder_with_train_files_never_reads_its_test_file(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", RECORDS[:2])
    write(tmp_path / "test.parquet", RECORDS[2:])

    assert [record.value["n"] for record in read_records(str(tmp_path))] == [1, 2]


def test_a_hub_dataset_is_read_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write(corpus / "train.jsonl")

    records = list(read_records(None, hub_id=str(corpus)))

    assert [record.value for record in records] == RECORDS
    assert records[2].where == f"{corpus}[2]"


def test_missing_locations_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 'path' or 'hub_id', found neither.*data\.path"):
        list(read_records(None))
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*gone'.*data\.path"):
        list(read_records(str(tmp_path / "gone")))
    with pytest.raises(FileNotFoundError, match=r"holds no \.json, \.jsonl, \.parquet file"):
        list(read_records(str(tmp_path)))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"a file ending in \.json, \.jsonl, \.parquet, found '.*x\.csv'"):
        list(read_records(str(tmp_path / "x.csv")))


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("x.json", '[{"query": "a"}, {"query": "b', ("x.json: ", "field 'file'", "valid JSON", "line 1 column 28")),
        ("x.jsonl", '{"query": "a"}\n{"query": \n', ("x.jsonl:2: ", "field 'line'", "valid JSON")),
        ("x.jsonl", '{"query": NaN}\n', ("x.jsonl:1: ", "NaN is not JSON")),
        ("x.json", '{"query": "a"}', ("x.json: ", "a JSON list of records", "Use .jsonl")),
        ("x.json", '[{"query": "a"}, "b"]', ("x.json[1]: ", "field 'record'", "an object, found 'b'")),
    ],
    ids=["truncated", "truncated-line", "nan", "no-list", "no-object"],
)
def test_a_file_that_does_not_parse_is_named_with_the_spot(
    tmp_path: Path, file: str, text: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        list(read_records(str(tmp_path / file)))
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_require_names_a_missing_key_and_a_wrong_type() -> None:
    with pytest.raises(DataError, match=r"x\[3\]: field 'a\.value': expected a string under this key, found \['k'\]"):
        require({"k": 1}, "value", str, "x[3]", "a.")
    with pytest.raises(DataError, match=r"x\[3\]: field 'value': expected a list, found 'text'"):
        require({"value": "text"}, "value", list, "x[3]")
