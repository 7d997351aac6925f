"""An evaluation's folder: the records, one JSON line a sample, and what the evaluation is made of.

A record is written as soon as its verdict is known. A line counts once its line break is there, so an interrupted
evaluation loses at most the line it was writing. A resumed evaluation must be made of the same, or its records would
not belong together; the identity of a model is that of its content, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import ConfigError, Refusal
from src.runs.line_file import write_whole
from src.wings.evaluation.benchmark import Record

if TYPE_CHECKING:
    from src.wings.evaluation.resolving import ModelSource

FINGERPRINT = "fingerprint.json"
"""In an evaluation's folder: what the evaluation is made of."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
_ABSENT = object()
_FIELDS: dict[str, type] = {"id": str, "category": str, "passed": bool, "metrics": dict, "details": dict}


class RecordError(Refusal, ValueError):
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
    values: dict[str, Any] = {key: getattr(record, key) for key in _FIELDS}
    values |= {"metrics": dict(record.metrics), "details": dict(record.details)}
    try:
        line = json.dumps(values)
        json.loads(line)
    except RecursionError:
        line = json.dumps({**values, "details": {"omitted": "nested too deep for JSON"}})
    return line + "\n"


def model_identity(source: ModelSource) -> dict[str, Any]:
    """Weights, tokenizer and settings of a model, without its place.

    Raises:
        ConfigError: the checkpoint is not whole, or the hub cannot be reached or lacks the model.
        OSError: see `locate`.
    """
    from transformers import AutoConfig

    from src.models.checkpoints.reading import checkpoint_digest  # a sweep compares fingerprints without PyTorch
    from src.models.loading.files import locate

    place = locate(source.policy)
    lora = source.policy.lora
    needs_base = source.checkpoint is None or lora is not None  # a checkpoint of adapters has no other weights
    found: dict[str, Any] = {"dtype": source.policy.dtype, "lora": None if lora is None else asdict(lora)}
    if Path(place).is_dir():
        found["files"] = _digest(place, _OTHERS)
        random = source.policy.weights == "random"
        base = "random" if random else _digest(place, _WEIGHTS) if needs_base else None
    else:
        try:
            config = AutoConfig.from_pretrained(place, trust_remote_code=source.policy.trust_remote_code)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"model={place}: the hub does not give its config.json: {reason}") from error
        found["commit"] = getattr(config, "_commit_hash", None) or place
        base = source.policy.weights
    if source.checkpoint is None:
        found["weights"] = base
    else:
        found["weights"] = checkpoint_digest(source.checkpoint)
        if needs_base:
            found["base_weights"] = base
    return found


def _digest(folder: str, patterns: Iterable[str]) -> str:
    """SHA-256 over names and contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in Path(folder).glob(pattern)}):
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def open_folder(folder: Path, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
    """Start an evaluation in a folder, or check that the one in it is the same.

    Raises:
        ConfigError: the folder holds none to resume, another one, or (without `resume`) already one.
    """
    path = folder / FINGERPRINT
    if not resume:
        if path.exists():
            raise ConfigError(f"'{folder}' holds an evaluation already. To continue it: resume={folder}")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(fingerprint, indent=2) + "\n")
        return
    if not path.is_file():
        raise ConfigError(f"resume={folder}: expected the folder of an evaluation, found no {FINGERPRINT} in it.")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if found := differences(saved, json.loads(json.dumps(fingerprint))):
        raise ConfigError(
            f"resume={folder}: this evaluation differs from the one that began there: {'; '.join(found)}. "
            "Give the same arguments, or start a new evaluation without resume."
        )


def differences(saved: Any, now: Any, key: str = "") -> list[str]:
    """What differs between two nests of plain values, a line a key.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    ['a.b was 1, is 2', 'c was absent, is 3']
    """
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = sorted(set(saved) | set(now))
        parts = [differences(saved.get(k, _ABSENT), now.get(k, _ABSENT), f"{key}.{k}" if key else k) for k in keys]
        return [line for part in parts for line in part]
    return [] if saved == now else [f"{key} was {_shown(saved)}, is {_shown(now)}"]


def _shown(value: Any) -> str:
    shown = "absent" if value is _ABSENT else repr(value)
    return shown if len(shown) <= 60 else shown[:24] + "…"
