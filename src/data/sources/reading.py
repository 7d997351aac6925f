"""Records of a corpus, from a file, a folder or the hub, each with the place that an error message names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from src.protocol.dialogue import DataError, JsonValue

SUFFIXES = (".json", ".jsonl", ".parquet")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One raw record.

    Attributes:
        value: the record as parsed.
        where: file and line (`x.jsonl:7`), file and index (`x.json[6]`), or hub id and index.
        id: unique within the corpus.
    """

    value: Mapping[str, JsonValue]
    where: str
    id: str


def read_records(path: str | None, hub_id: str | None = None, hub_split: str = "train") -> Iterator[Record]:
    """Read a corpus record by record.

    Args:
        path: a `.json` (a list of records), `.jsonl` or `.parquet` file, or a folder of such files, read in the order
            of their names. A folder with files named `train*` is read for these alone, so that a published test file
            never ends up in training. Wins over `hub_id`.
        hub_id: a dataset on the hub, read through `datasets.load_dataset`.
        hub_split: its split.

    Raises:
        ValueError: neither `path` nor `hub_id`.
        FileNotFoundError: nothing readable at `path`.
        DataError: a file that does not parse, or a record that is not an object.
    """
    if path is not None:
        for file in corpus_files(path):
            yield from _read_file(file)
    elif hub_id is not None:
        yield from _read_hub(hub_id, hub_split)
    else:
        raise ValueError(
            "source: expected 'path' or 'hub_id', found neither. Set data.path to the corpus' file or folder."
        )


def corpus_files(path: str) -> list[Path]:
    """The files that `read_records` reads for a path.

    Raises:
        FileNotFoundError: nothing is there, or a folder without such files.
        ValueError: a file of another kind.
    """
    root = Path(path).expanduser()
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise ValueError(f"path: expected a file ending in {', '.join(SUFFIXES)}, found '{root}'.")
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"path: no file or folder '{root}'. Set data.path to where the corpus lies.")
    files = sorted(file for file in root.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"path: folder '{root}' holds no {', '.join(SUFFIXES)} file.")
    return [file for file in files if file.name.startswith("train")] or files


def _read_file(file: Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        for index, value in enumerate(_parquet_values(file)):
            yield _record(value, f"{file}[{index}]", f"{file.stem}-{index}")
    elif file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    value = parse_json(_text(line, f"{file}:{number}"), f"{file}:{number}", "line")
                    yield _record(value, f"{file}:{number}", f"{file.stem}-{number}")
    else:
        values = parse_json(_text(file.read_bytes(), str(file)), str(file), "file")
        if not isinstance(values, list):
            raise DataError(str(file), "file", "a JSON list of records", values, "Use .jsonl for one record a line.")
        for index, value in enumerate(values):
            yield _record(value, f"{file}[{index}]", f"{file.stem}-{index}")


def _parquet_values(file: Path) -> Iterator[JsonValue]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            str(file), "file", f"a whole parquet file ({reason})", f"{file.stat().st_size} bytes"
        ) from error


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        spot = data[max(0, error.start - 10) : error.start + 10]
        raise DataError(where, "file", f"UTF-8 text ({error.reason} at byte {error.start})", spot) from None


def _read_hub(hub_id: str, split: str) -> Iterator[Record]:
    from datasets import load_dataset

    try:
        values = load_dataset(hub_id, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"source.hub_id: the split '{split}' of '{hub_id}' cannot be loaded: {reason} Check the name and the "
            "connection (gated datasets need a token), or set data.path to a local file or folder."
        ) from error
    for index, value in enumerate(values):
        yield _record(value, f"{hub_id}[{index}]", str(index))


def _record(value: JsonValue, where: str, id: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(where, "record", "an object", value)
    return Record(value, where, id)


def parse_json(text: str, where: str, field: str) -> JsonValue:
    """`json.loads`, strict about NaN and Infinity; what does not parse is a DataError that shows the spot."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except json.JSONDecodeError as error:
        spot = text[max(0, error.pos - 30) : error.pos + 30] or text[-60:]
        at = f"line {error.lineno} column {error.colno}"
        raise DataError(where, field, f"valid JSON ({error.msg} at {at})", spot) from None
    except ValueError as error:
        raise DataError(where, field, f"valid JSON ({error})", text[:60]) from None
    except RecursionError:
        raise DataError(where, field, "JSON that is not nested a thousand levels deep", text[:60]) from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_NAMES: Mapping[type, str] = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


def require(value: Mapping[str, Any], key: str, kind: type[T], where: str, prefix: str = "") -> T:
    """`value[key]` of the given type.

    Args:
        value: the object that should have the key.
        key: its name.
        kind: `str`, `list` or `dict`.
        where: the record's place, for the error.
        prefix: path of `value` within the record, e.g. `conversations[2].`.

    Raises:
        DataError: the key is missing or its value has another type.
    """
    if key not in value:
        raise DataError(where, prefix + key, f"{_NAMES[kind]} under this key", sorted(value), "The key is missing.")
    if not isinstance(value[key], kind):
        raise DataError(where, prefix + key, _NAMES[kind], value[key])
    return cast(T, value[key])
