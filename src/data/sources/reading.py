"""Records of a corpus, from a file, a folder or the hub, each with the place that an error message names."""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from src.protocol.dialogue import DataError, JsonValue

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".arrow")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHALLOW = "JSON that is not nested a thousand levels deep"
_NO_CORPUS = re.compile(  # hidden, what `datasets` keeps beside a corpus, or about one
    r"\.|cache-.*\.arrow$|(dataset_infos?|dataset_dict|state|croissant|metadata)\.json$"
)
_POINTER = b"version https://git-lfs"
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


def read_records(path: str | None, hub_id: str | None = None, hub_split: str = "train") -> Iterator[Record | DataError]:
    """Read a corpus record by record. A record that cannot be read comes as the error that names it.

    A `.json` file holds a list of records, an object with a list under `train` or with one list of records, or JSON
    lines. An `.arrow` file is one that `datasets.save_to_disk` wrote.

    Args:
        path: a file or a folder; see `corpus_files`. Wins over `hub_id`.
        hub_id: a dataset on the hub, read through `datasets.load_dataset`.
        hub_split: its split.

    Raises:
        ValueError: neither `path` nor `hub_id`.
        FileNotFoundError: nothing readable at `path`.
        DataError: a file that cannot be read at all.
    """
    if path is not None:
        files = corpus_files(path)
        stems = [file.name.removesuffix(_suffix(file)) for file in files]
        alone = len(set(stems)) == len(stems)
        for file, stem in zip(files, stems, strict=True):
            yield from _read_file(file, stem if alone else file.relative_to(Path(path).expanduser()).as_posix())
    elif hub_id is not None:
        yield from _read_hub(hub_id, hub_split)
    else:
        raise ValueError(
            "source: expected 'path' or 'hub_id', found neither. Set data.path to the corpus' file or folder."
        )


def corpus_files(path: str) -> list[Path]:
    """The files that `read_records` reads for a path, in the order of their names.

    Of a folder these are the files named `train*` in it and in its folder `data`, and all in its folders `train` and
    `default/train`: a published test file never ends up in training. Without any of these, all files of the folder
    itself.

    Raises:
        FileNotFoundError: nothing is there, or a folder without such files.
        ValueError: a file of another kind.
    """
    root = Path(path).expanduser()
    if root.is_file():
        if not _suffix(root):
            raise ValueError(f"path: expected a file ending in {', '.join(SUFFIXES)}, found '{root}'.")
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"path: no file or folder '{root}'. Set data.path to where the corpus lies.")
    trains = (root / "train", root / "default/train")
    found = sorted(file for folder in (root, root / "data", *trains) for file in folder.glob("*"))
    found = [file for file in found if _suffix(file) and file.is_file() and not _NO_CORPUS.match(file.name)]
    files = [file for file in found if file.name.startswith("train") or file.parent in trains]
    files = files or [file for file in found if file.parent == root]
    if not files:
        raise FileNotFoundError(
            f"path: folder '{root}' holds no {', '.join(SUFFIXES)} file, nor do its folders data and train hold those "
            "of a train split."
        )
    return files


def _suffix(file: Path) -> str:
    """The one of `SUFFIXES` that a file has, or nothing."""
    return next((end for end in SUFFIXES if file.name.endswith(end)), "")


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file only points at what Git LFS would fetch."""
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def _read_file(file: Path, name: str) -> Iterator[Record | DataError]:
    if is_lfs_pointer(file):
        advice = "It is a Git LFS pointer: run `git lfs pull` in its repository."
        raise DataError(str(file), "file", "the data itself", _POINTER.decode(), advice)
    if file.suffix in (".parquet", ".arrow"):
        yield from _arrow_records(file, name)
        return
    try:
        with cast(IO[bytes], gzip.open(file) if file.suffix == ".gz" else file.open("rb")) as stream:
            if ".jsonl" in _suffix(file):
                yield from _read_lines(stream, file, name)
            else:
                yield from _read_json(_text(stream.read(), str(file)), file, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(str(file), "file", f"a whole gzip file ({error})", f"{file.stat().st_size} bytes") from error


def _read_lines(lines: Iterable[bytes], file: Path, name: str) -> Iterator[Record | DataError]:
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        if line := line.strip():
            try:
                value = _loads(_text(line, where), where, "line")
            except DataError as error:
                yield error
            else:
                yield _record(value, where, f"{name}-{number}")


def _read_json(text: str, file: Path, name: str) -> Iterator[Record | DataError]:
    if _is_json_lines(text):
        yield from _read_lines(map(str.encode, io.StringIO(text)), file, name)
        return
    values, where = _loads(text, str(file), "file"), str(file)
    if isinstance(values, dict):
        lists = [key for key, value in values.items() if isinstance(value, list) and dict in map(type, value)]
        lists = ["train"] if isinstance(values.get("train"), list) else lists
        if len(lists) == 1:
            values, where = values[lists[0]], f"{file}.{lists[0]}"
    if not isinstance(values, list):
        raise DataError(where, "file", "a JSON list of records", values, "Use .jsonl for one record a line.")
    for index, value in enumerate(values):
        yield _record(value, f"{where}[{index}]", f"{name}-{index}")


def _is_json_lines(text: str) -> bool:
    """Whether the first line is a whole object and another follows."""
    first = re.match(r"\s*(\{.*)\n\s*\S", text)
    try:
        return first is not None and bool(_loads(first[1], "", ""))
    except DataError:
        return False


def _arrow_records(file: Path, name: str) -> Iterator[Record | DataError]:
    import pyarrow as pa
    from pyarrow import ipc, parquet

    kind = "parquet" if file.suffix == ".parquet" else "Arrow"
    try:
        with pa.memory_map(str(file)) as stream:
            if kind == "parquet":
                table = parquet.ParquetFile(stream)
                batches, schema = table.iter_batches(), table.schema_arrow
            else:
                batches = ipc.open_stream(stream)
                schema = batches.schema
            yield from _rows(batches, schema, str(file), f"{name}-")
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = f"{file.stat().st_size} bytes"
        raise DataError(str(file), "file", f"a whole {kind} file ({reason})", size) from error


def _read_hub(hub_id: str, split: str) -> Iterator[Record | DataError]:
    from datasets import load_dataset

    try:
        rows = load_dataset(hub_id, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"source.hub_id: the split '{split}' of '{hub_id}' cannot be loaded: {reason} Check the name and the "
            "connection (gated datasets need a token), or set data.path to a local file or folder."
        ) from error
    yield from _rows(rows.with_format("arrow").iter(1000), rows.features.arrow_schema, hub_id, "")


def _rows(batches: Iterable[Any], schema: pa.Schema, where: str, prefix: str) -> Iterator[Record | DataError]:
    """Records of Arrow's rows, `prefix` and their index as ids.

    Null fields of nested structs are left out: Arrow gives each struct the keys of all, absent ones as null. Nulls of
    the rows themselves and in lists stay, and so do pairs of map columns. What the schema says is JSON (`arrow.json`,
    the `Json()` of datasets) is decoded.
    """
    shapes = {field.name: shape for field in schema if (shape := _structs(field.type)) is not None}
    dropped = 0

    def present(value: JsonValue, shape: Any, place: str, column: str) -> JsonValue:
        nonlocal dropped
        if isinstance(shape, str) and isinstance(value, str):
            return parse_json(value, place, column)
        if isinstance(shape, list) and isinstance(value, list):
            return [present(item, shape[0], place, f"{column}[{index}]") for index, item in enumerate(value)]
        if isinstance(shape, dict) and isinstance(value, dict):
            said = {name: item for name, item in value.items() if item is not None}
            dropped += len(value) - len(said)
            return {name: present(item, shape.get(name), place, f"{column}.{name}") for name, item in said.items()}
        return value

    for index, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches)):
        place = f"{where}[{index}]"
        try:
            read = {name: present(value, shapes.get(name), place, name) for name, value in row.items()}
        except DataError as error:
            yield error
        else:
            yield _record(read, place, f"{prefix}{index}", columns=True)
    if dropped:
        log.warning(
            "%s: %s nulls inside nested columns read as absent keys; Arrow fills them in. Publish such columns as JSON "
            "text to keep a null that was said.",
            where,
            f"{dropped:,}",
        )


def _structs(kind: pa.DataType) -> dict[str, Any] | list[Any] | str | None:
    """Where the structs of a type are: a dict for a struct, a list of one for a list, "json"; None for all else.

    >>> import pyarrow
    >>> _structs(pyarrow.list_(pyarrow.struct({"name": pyarrow.string(), "arguments": pyarrow.struct([])})))
    [{'name': None, 'arguments': {}}]
    """
    from pyarrow import types

    if types.is_struct(kind):
        return {field.name: _structs(field.type) for field in kind.fields}
    if getattr(kind, "extension_name", "") == "arrow.json":
        return "json"
    inner = _structs(kind.value_type) if hasattr(kind, "value_field") else None  # lists of all kinds
    return None if inner is None else [inner]


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        spot = data[max(0, error.start - 10) : error.start + 10]
        raise DataError(where, "file", f"UTF-8 text ({error.reason} at byte {error.start})", spot) from None


def _record(value: JsonValue, where: str, id: str, columns: bool = False) -> Record | DataError:
    """The record, or what is wrong with it. NaN in a column of Arrow stands for a number that is missing."""
    try:
        if not isinstance(value, dict):
            raise DataError(where, "record", "an object", value)
        checked = {name: one for name, one in value.items() if not isinstance(one, float)} if columns else value
        check_json(checked, where, "", columns=columns)
    except DataError as error:
        return error
    return Record(value, where, id)


@dataclass(frozen=True, slots=True)
class _Repeated:
    """Stands for the values of a key that occurs more than once in an object. `check_json` refuses it."""

    values: list[JsonValue]


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        value |= {key: _Repeated([item for name, item in pairs if name == key]) for key in repeated}
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Reads JSON and keeps what `check_json` refuses: repeated keys, numbers that are not finite, lone surrogates."""


_STRICT: Mapping[str, Any] = {"ensure_ascii": False, "allow_nan": False, "check_circular": False}
_ENCODER = json.JSONEncoder(**_STRICT)
_OF_COLUMNS = json.JSONEncoder(**_STRICT, default=lambda date_or_bytes: None)


def check_json(value: JsonValue, where: str, field: str, *, columns: bool = False) -> None:
    """Refuse what `DECODER` keeps and other readers of JSON read differently or not at all.

    >>> check_json(DECODER.decode('[{"city": "Oslo", "days": 1e999}]'), "x.json[4]", "answers")
    Traceback (most recent call last):
    src.protocol.dialogue.DataError: x.json[4]: field 'answers[0].days': expected a finite number, found inf.

    Raises:
        DataError: a key twice in an object, a number that is not finite, a lone surrogate, or a value that is no JSON
            (dates and bytes are fine with `columns`, which Arrow has them in); it names the path.
    """
    try:
        (_OF_COLUMNS if columns else _ENCODER).encode(value).encode()
    except (TypeError, ValueError, RecursionError):
        try:
            _refuse(value, where, field)
        except RecursionError:
            raise DataError(where, field or "record", _SHALLOW, "…") from None
        raise


def _refuse(value: JsonValue, where: str, path: str) -> None:
    if isinstance(value, _Repeated):
        raise DataError(where, path, "this key once in its object", value.values)
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(where, path, "a finite number", value)
    if isinstance(value, str) and _SURROGATE.search(value):
        raise DataError(where, path, "text without a lone surrogate", value)
    if value is not None and not isinstance(value, str | int | float | list | tuple | dict):
        raise DataError(where, path, "JSON", value)
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse(item, where, f"{path}[{index}]")
    if isinstance(value, dict):
        for key, item in value.items():
            if _SURROGATE.search(key):
                raise DataError(where, path or "record", "keys without a lone surrogate", key)
            _refuse(item, where, f"{path}.{key}" if path else key)


def parse_json(text: str, where: str, field: str) -> JsonValue:
    """The value of JSON text in a field.

    Raises:
        DataError: it does not parse, shown at the spot, or holds what `check_json` refuses.
    """
    value = _loads(text, where, field)
    check_json(value, where, field)
    return value


def unfenced(text: str) -> str:
    r"""The text inside of a Markdown fence, where the whole text is one; else the text as it is.

    >>> unfenced("```json\n[]\n```"), unfenced("Write ```[]```.")
    ('[]', 'Write ```[]```.')
    """
    opening, _, body = text.strip().partition("\n")
    return body[:-3].strip() if re.fullmatch(r"```\s*\w*\s*", opening) and body.endswith("```") else text


def _loads(text: str, where: str, field: str) -> JsonValue:
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        spot = text[max(0, error.pos - 30) : error.pos + 30] or text[-60:]
        at = f"line {error.lineno} column {error.colno}"
        raise DataError(where, field, f"valid JSON ({error.msg} at {at})", spot) from None
    except ValueError as error:
        raise DataError(where, field, f"valid JSON ({error})", text[:60]) from None
    except RecursionError:
        raise DataError(where, field, _SHALLOW, text[:60]) from None


_SHAPES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "toolace": ("system", "conversations"),
    "xlam": ("query", "tools", "answers"),
    "rlla": ("instruction", "input", "output"),
}


def shape_of(record: Mapping[str, JsonValue]) -> str | None:
    """The option of `data=` that a record's columns are known to be for; None where none is, or several may be.

    >>> shape_of({"messages": [], "tools": None, "id": 7}), shape_of({"query": "Sun?", "tools": [], "answers": []})
    ('messages', 'xlam')
    >>> shape_of({"instruction": "Say hi.", "input": "", "output": "Hi."}) is None
    True
    """
    if "conversations" in record and "tools" not in record and record.get("system") is not None:
        return "toolace" if '"parameters"' in str(record["system"]) else None
    if isinstance(record.get("reward_model"), dict) and "prompt" in record:
        return "rlla"
    found = [name for name, columns in _SHAPES.items() if name != "toolace" and record.keys() >= set(columns)]
    if found == ["rlla"] and "<think>" not in str(record["output"]):
        return None
    return found[0] if len(found) == 1 else None


def shape_advice(record: Mapping[str, JsonValue], chosen: str = "") -> str:
    """What to say of a record of another known shape than `chosen`, an option of `data=`; empty where nothing is.

    >>> shape_advice({"messages": [], "tools": None}, "xlam")
    'This record has the columns messages, tools: use data=messages.'
    """
    shape = shape_of(record)
    if shape == chosen or (chosen and chosen not in _SHAPES):
        return ""
    if shape is None and isinstance(record.get("prompt"), list) and "completion" in record:
        return "Join the lists of prompt and completion in one column messages, for data=messages."
    if shape is None:
        return ""
    columns = [*list(record)[:6], *(["…"] if len(record) > 6 else [])]
    return f"This record has the columns {', '.join(columns)}: use data={shape}."


def unread(path: str) -> str:
    """What to say where `data.path` is set and the chosen corpus reads no file: the one for the shape of this file."""
    try:
        first = next(read_records(path))
    except (OSError, ValueError, StopIteration):
        first = None
    advice = shape_advice(first.value) if isinstance(first, Record) else ""
    return f"data.path: the chosen corpus reads no '{path}'. {advice or 'Choose one that does with data=NAME.'}"


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
