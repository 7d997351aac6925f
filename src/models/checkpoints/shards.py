"""Checkpoints that are folders of shards (`torch.distributed.checkpoint`), read in one process: reads, changes nothing.

Sharded training writes a `*.ckpt/` folder in which every rank has put its part of every tensor: `.metadata` says which
bytes of which `*.distcp` file are which part of what, `meta.pt` holds what is no tensor.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta, TensorStorageMetadata

METADATA = ".metadata"
EXTRAS = "meta.pt"
_DIRECTORY_BYTES = 16384  # more than the zip directory of a file of torch.save with one tensor in it

_FORMAT = "torch.distributed.checkpoint."
_KNOWN = {
    *((_FORMAT + "metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    )),
    (_FORMAT + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}  # fmt: skip


class BrokenShardsError(ValueError):
    """A folder that is no whole checkpoint; says what is wrong with it."""


class Part(NamedTuple):
    """A stored part of a tensor.

    Attributes:
        file: that holds it.
        offset: of its first byte there.
        length: in bytes.
    """

    file: Path
    offset: int
    length: int


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles what a checkpoint's metadata is made of and refuses the rest, which could be any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's metadata")


class _Reader(FileSystemReader):
    """PyTorch's reader, but metadata cannot run code (shards are read with `weights_only` by it too)."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, METADATA).open("rb") as file:
            metadata: Metadata = _MetadataUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        return metadata


class Shards:
    """The tensors of a folder of shards below one key.

    Args:
        folder: the checkpoint.
        key: of the saved state; the optimizer's tensors, for one, are below others.

    Attributes:
        shapes: shape of each tensor by its name below the key.

    Raises:
        BrokenShardsError: no metadata, metadata that cannot be read, or files that are missing or too short.
    """

    def __init__(self, folder: Path, key: str = "state_dict") -> None:
        self._folder, self._key = folder, f"{key}."
        self._reader = _Reader(folder)
        if not (folder / METADATA).is_file():
            raise BrokenShardsError(f"no {METADATA}, which is written last: was saving it cut off?")
        try:
            self._metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, KeyError, IndexError) as error:
            raise BrokenShardsError(f"its {METADATA} cannot be read: {error}") from error
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.shapes: dict[str, torch.Size] = {
            name.removeprefix(self._key): entry.size
            for name, entry in self._metadata.state_dict_metadata.items()
            if name.startswith(self._key) and isinstance(entry, TensorStorageMetadata)
        }
        self._check_files()

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, one stored part after another; nothing else of the checkpoint is read.

        Args:
            tensors: name -> CPU tensor of the stored shape; its dtype may be another one.

        Raises:
            BrokenShardsError: a part cannot be read.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner({self._key + name: tensor for name, tensor in tensors.items()}, self._metadata, True)
        try:
            self._reader.read_data(planner.create_local_plan(), planner).wait()
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BrokenShardsError(f"a shard cannot be read: {reason}") from error

    def checksums(self) -> Iterator[tuple[str, int, int]]:
        """Place, size and CRC-32 of everything stored below the key, from the files' directories, in a fixed order.

        Every part is a zip archive whose directory, at its end, has a checksum of each entry.

        Raises:
            BrokenShardsError: a part is no such archive.
        """
        for index, part in sorted(self._parts(), key=lambda item: (item[0].fqn, tuple(item[0].offset or ()))):
            with part.file.open("rb") as file:
                size = min(part.length, _DIRECTORY_BYTES)
                file.seek(part.offset + part.length - size)
                directory = io.BytesIO(file.read(size))
            try:
                with zipfile.ZipFile(directory) as archive:
                    for entry in archive.infolist():
                        place = f"{index.fqn}{tuple(index.offset or ())}:{entry.filename}"
                        yield place, entry.file_size, entry.CRC
            except zipfile.BadZipFile as error:
                raise BrokenShardsError(f"'{part.file.name}' is damaged at {index.fqn}.") from error

    def _parts(self) -> Iterator[tuple[MetadataIndex, Part]]:
        stored: dict[MetadataIndex, Any] = self._metadata.storage_data
        for index, info in stored.items():
            if index.fqn.startswith(self._key):
                yield index, Part(self._folder / info.relative_path, info.offset, info.length)

    def _check_files(self) -> None:
        """All parts that the metadata names are there."""
        ends: dict[Path, int] = defaultdict(int)
        found: dict[str, int] = defaultdict(int)
        for index, part in self._parts():
            ends[part.file] = max(ends[part.file], part.offset + part.length)
            found[index.fqn] += 1
        for file, end in ends.items():
            size = file.stat().st_size if file.is_file() else 0
            if size < end:
                wrong = f"has {size} bytes" if file.is_file() else "is missing"
                raise BrokenShardsError(f"'{file.name}' {wrong}, expected at least {end} bytes.")
        for name in self.shapes:
            entry = self._metadata.state_dict_metadata[self._key + name]
            if isinstance(entry, TensorStorageMetadata) and found[self._key + name] < len(entry.chunks):
                raise BrokenShardsError(
                    f"{name} has {found[self._key + name]} of its {len(entry.chunks)} parts; were all ranks' files "
                    "copied?"
                )
