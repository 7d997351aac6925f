"""Files of JSON lines that a resumed run continues: they grow by lines and can be cut back. Touches its file only."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


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
