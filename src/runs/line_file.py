"""Files of JSON lines: written by a run, which continues them after a stop, and read by everyone else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class LineError(ValueError):
    """A line that is no record: names file and line, what was expected and what was found."""


def parse_line(line: bytes, path: Path, number: int, keys: Sequence[str]) -> dict[str, Any]:
    """A line's object.

    Args:
        line: with or without its line break.
        path: for the error.
        number: likewise, from 1.
        keys: those that it must have.

    Raises:
        LineError: it is no JSON object or lacks a key.
    """
    try:
        record = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not set(keys) <= record.keys():
        listed = " and ".join([", ".join(keys[:-1]), keys[-1]] if len(keys) > 1 else keys)
        raise LineError(f"{path}, line {number}: expected a JSON object with {listed}, found {line[:80]!r}.")
    return record


def read_lines(
    path: Path, keys: Sequence[str], *, start: int = 0, growing: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """(the objects of a file's lines, the position where the last of these lines ends); empty lines are left out.

    Args:
        path: the file.
        keys: those that each object must have.
        start: position of the first line to read; lines are counted from there.
        growing: the file may be written to: a last line without its line break is left out.

    Raises:
        LineError: a line is no JSON object or lacks a key.
    """
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    if growing:
        content = content[: content.rfind(b"\n") + 1]
    lines = enumerate(content.split(b"\n"), start=1)
    return [parse_line(line, path, number, keys) for number, line in lines if line.strip()], start + len(content)


class LineFile:
    """A JSON object a line.

    A checkpoint keeps `position()`; a run that goes on from it calls `rewind` with that, so that what the killed run
    wrote later, half a line perhaps, is not there twice.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a line for each record."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def position(self) -> int:
        """Bytes written so far; they are on disk when this returns."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def rewind(self, position: int) -> None:
        """Cut off what was written after a position; a file that is shorter is told and left."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < position:
            log.warning(
                "'%s': expected %d bytes as at the checkpoint, found %d. The lines in between are lost; the file goes "
                "on behind the gap.",
                self.path,
                position,
                size,
            )
        elif size > position:
            os.truncate(self.path, position)


def write_whole(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
