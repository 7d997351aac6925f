"""Checkpoints on disk: written under another name, given checksums, synced and renamed; told whole from damaged.

Touches a checkpoint and its neighbours of the same name: `X.partial` is being written, `X.replaced` is the one before,
until it is removed. A single file needs no checksum beside it: a file of `torch.save` is a zip archive that has a
CRC-32 of every tensor. A folder of shards gets `checksums.json`, last of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from src.models.checkpoints.reading import METADATA, DamagedCheckpointError, Shards

PARTIAL = ".partial"
REPLACED = ".replaced"
MANIFEST = "checksums.json"

_OF_RANK = re.compile(r"__(\d+)_")
_NOT_A_ZIP = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error, zlib.error)


class FileSum(TypedDict):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


def partial_path(path: Path) -> Path:
    """Where a checkpoint is while it is being written."""
    return path.with_name(path.name + PARTIAL)


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sums(folder: Path, rank: int) -> dict[str, FileSum]:
    """Sums of the files that a rank wrote into a folder of shards, each of them synced to disk.

    Names of shards begin with `__<rank>_`; what all share is rank 0's.
    """
    sums: dict[str, FileSum] = {}
    for path in sorted(folder.iterdir()):
        owner = _OF_RANK.match(path.name)
        if (int(owner[1]) if owner else 0) == rank and path.name != MANIFEST:
            sync(path)
            sums[path.name] = _sum(path)
    return sums


def seal(partial: Path, sums: Iterable[dict[str, FileSum]]) -> None:
    """End the writing of a checkpoint: checksums of a folder's files, and everything on disk.

    Args:
        partial: the file, or the folder that all ranks have written to.
        sums: `file_sums` of every rank; none for a file.
    """
    if partial.is_dir():
        manifest = partial / MANIFEST
        merged = {name: entry for part in sums for name, entry in part.items()}
        manifest.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
        sync(manifest)
    sync(partial)


def publish(partial: Path, path: Path, previous: Path | None = None) -> None:
    """Give a sealed checkpoint its name.

    A kill at any point leaves the old or the new one whole, under a name that `resume_from` looks at: a folder cannot
    take the place of another in one step, so the old one is moved out of the way first.

    Args:
        partial: sealed.
        path: its name from now on.
        previous: where the one that has this name now is kept; None: it is removed.
    """
    aside = previous or path.with_name(path.name + REPLACED)
    if path.exists() and (previous is not None or path.is_dir() or partial.is_dir()):
        remove(aside)
        path.rename(aside)
    os.replace(partial, path)
    sync(path.parent)
    if previous is None:
        remove(aside)


def settle(folder: Path, taken: Path, previous: Path | None = None) -> None:
    """End what a kill left under way: every checkpoint that is whole has its name, and nothing is kept for that.

    Args:
        folder: of checkpoints.
        taken: the one in it that a run goes on from; if it is whole but not renamed yet, it is now.
        previous: see `publish`.
    """
    if taken.name.endswith(PARTIAL):
        publish(taken, taken.with_suffix(""), previous)
    for aside in folder.glob(f"*{REPLACED}"):
        if aside.with_suffix("").exists():
            remove(aside)
        else:
            aside.rename(aside.with_suffix(""))


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_whole(path: Path) -> None:
    """Read all of a checkpoint and compare it with its checksums.

    Raises:
        DamagedCheckpointError: it is not whole.
    """
    if path.is_dir():
        _check_folder(path)
    else:
        _check_file(path)


def _check_file(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise DamagedCheckpointError("there is no such file") from None
    except _NOT_A_ZIP as error:
        raise DamagedCheckpointError(f"it is no whole file of torch.save ({error})") from error
    if damaged is not None:
        raise DamagedCheckpointError(f"the checksum of '{damaged}' in it is wrong")


def _check_folder(folder: Path) -> None:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if folder.name.endswith(PARTIAL) or not (folder / METADATA).is_file():
            raise DamagedCheckpointError(f"no {MANIFEST}, which is written last: was saving it cut off?")
        Shards(folder)  # of a version without checksums: what its metadata names is there
        return
    try:
        sums: dict[str, FileSum] = json.loads(manifest.read_text(encoding="utf-8"))
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in sums.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise DamagedCheckpointError(f"its {MANIFEST} cannot be read ({error})") from error
    if METADATA not in expected:
        raise DamagedCheckpointError(f"its {MANIFEST} has no {METADATA}")
    for name, (size, digest) in expected.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            wrong = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise DamagedCheckpointError(f"'{name}' {wrong}")
        if _sum(file)["sha256"] != digest:
            raise DamagedCheckpointError(f"the checksum of '{name}' is wrong")


def _sum(path: Path) -> FileSum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
