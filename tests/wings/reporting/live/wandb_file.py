"""What an offline W&B run wrote: its `.wandb` file is a LevelDB log of protobuf records behind a header of 7 bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32768, 7


def records(file: Path) -> Iterator[Record]:
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = _HEADER, b""
    while position + _HEADER <= len(content):
        if _BLOCK - position % _BLOCK < _HEADER:  # the rest of a block is too short for a header
            position += _BLOCK - position % _BLOCK
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        whole += content[position + _HEADER : position + _HEADER + size]
        position += _HEADER + size
        if kind in (1, 4):  # full, last
            yield Record.FromString(whole)
            whole = b""


class OfflineRun:
    """History and config of the only offline run in a run folder; media as bytes."""

    def __init__(self, folder: Path) -> None:
        (self._folder,) = (path for path in (folder / "wandb").glob("offline-run-*") if path.is_dir())
        (file,) = self._folder.glob("*.wandb")
        self.history: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        for record in records(file):
            if record.HasField("history"):
                self.history.append(_values(record.history.item))
            self.config |= _values(record.config.update) if record.HasField("config") else {}
            self.config |= _values(record.run.config.update) if record.HasField("run") else {}

    def media(self, key: str) -> dict[int, bytes]:
        """By rollout step, the x-axis that Lightning gives every number."""
        entries = [(row["trainer/global_step"], row[key]) for row in self.history if key in row]
        names = {step: entry["filenames"][0] if "filenames" in entry else entry["path"] for step, entry in entries}
        return {step: (self._folder / "files" / name).read_bytes() for step, name in names.items()}


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found
