"""Records of an evaluation on disk: one JSON line a sample, written as soon as its verdict is known.

A line counts once its line break is there, so an interrupted evaluation loses at most the line it was writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.wings.evaluation.benchmark import Record

FINGERPRINT = "fingerprint.json"
"""In an evaluation's folder: what the evaluation is made of."""
_FIELDS: dict[str, type] = {"id": str, "category": str, "passed": bool, "metrics": dict, "details": dict}


class RecordError(ValueError):
    """A line that is no record: names file and line."""


class RecordStore:
    """The records of one benchmark in `<benchmark>.jsonl`.

    Args:
        path: the file; made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """All records, oldest first; a last line without its line break is removed from the file.

        Raises:
            RecordError: another line is no record, or repeats an id.
        """
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        records: dict[str, Record] = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            record = self._parse(line, number)
            if record.id in records:
                raise self._error(number, f"an id that no line above has, found '{record.id}' again")
            records[record.id] = record
        return list(records.values())

    def append(self, record: Record) -> None:
        """Add a record; it is with the operating system when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record_line(record))

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace the file by these records, in this order, at once or not at all."""
        write_whole(self.path, "".join(map(record_line, records)))

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            raise self._error(number, f"a JSON object, found {line[:80]!r}") from error
        if not isinstance(value, dict) or set(value) != set(_FIELDS):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise self._error(number, f"an object with the keys {sorted(_FIELDS)}, found {found}")
        for key, kind in _FIELDS.items():
            if not isinstance(value[key], kind):
                raise self._error(number, f"'{key}' to be a {kind.__name__}, found {value[key]!r:.80}")
        return Record(**value)

    def _error(self, number: int, expected: str) -> RecordError:
        return RecordError(
            f"{self.path}, line {number}: expected {expected}. Remove the line (its sample is answered again) or start "
            "a new evaluation without resume."
        )


def record_line(record: Record) -> str:
    r"""A record as its line. ASCII only, so that no text of a model, lone surrogates included, can fail to be written.

    Details that are nested too deep for JSON are replaced by a note: they come from a model too.

    >>> record_line(Record("a", "b", True))
    '{"id": "a", "category": "b", "passed": true, "metrics": {}, "details": {}}\n'
    """
    values = {**_shallow(record), "metrics": dict(record.metrics), "details": dict(record.details)}
    try:
        line = json.dumps(values)
        json.loads(line)
    except RecursionError:
        line = json.dumps({**values, "details": {"omitted": "nested too deep for JSON"}})
    return line + "\n"


def _shallow(record: Record) -> dict[str, Any]:
    return {"id": record.id, "category": record.category, "passed": record.passed}


def write_whole(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
