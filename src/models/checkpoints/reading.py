"""Checkpoints of training runs, files and folders of shards alike: the model's weights out of them. Reads only.

Sharded training writes a `*.ckpt/` folder (`torch.distributed.checkpoint`) in which every rank has put its part of
every tensor: `.metadata` says which bytes of which `*.distcp` file are which part of what, `meta.pt` holds what is no
tensor.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta, TensorStorageMetadata

from src.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE_PREFIX = "policy.model."
_REFERENCE_PREFIX = "reference."  # the frozen start of a KL penalty: of use to training only
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


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was saved; says what is wrong with it."""


class Progress(NamedTuple):
    """How far a checkpoint's run was.

    Attributes:
        rollout_steps: done.
        optimizer_steps: done.
        date: the day that its prompts name (`PromptRenderer.date`); None: they name none.
    """

    rollout_steps: int
    optimizer_steps: int
    date: str | None = None


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint that is a folder of shards, whole or not."""
    return path.is_dir() and (path.suffix == ".ckpt" or any((path / name).is_file() for name in (METADATA, EXTRAS)))


def load_checkpoint(model: PreTrainedModel, path: Path) -> None:
    """Put the weights of a training checkpoint into a model on the CPU, every one that was trained.

    Frozen weights, those under adapters, may be missing: the model has them from where the run had them. Optimizer
    states are not read, and of a folder of shards only one part of a tensor is in memory at a time.

    Raises:
        ConfigError: no checkpoint of a training run, a broken one, or one of another model.
    """
    try:
        state = Shards(path) if is_sharded(path) else _File(path)
    except DamagedCheckpointError as error:
        raise ConfigError(f"checkpoint '{path}' is not whole: {error}") from error
    shapes = {name: shape for name, shape in state.shapes.items() if not name.startswith(_REFERENCE_PREFIX)}
    if not shapes or not all(name.startswith(_STATE_PREFIX) for name in shapes):
        raise ConfigError(
            f"checkpoint '{path}': expected a state_dict with names '{_STATE_PREFIX}…' as src/train.py saves them, "
            f"found {list(shapes)[:3] if shapes else state.found}."
        )
    given = {name.removeprefix(_STATE_PREFIX): shape for name, shape in shapes.items()}
    wanted = model.state_dict()
    frozen = tuple(name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad)
    problems = [f"missing {name}" for name in wanted if name not in given and not name.startswith(frozen)]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {tuple(given[name])} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name] != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ConfigError(
            f"checkpoint '{path}' does not fit {type(model).__name__}: {'; '.join(problems[:4])}{more}. Is "
            "config.yaml that of its run (policy.path, policy.lora), and base_path, if given, the right model?"
        )
    try:
        state.copy_into({_STATE_PREFIX + name: wanted[name] for name in given})
    except DamagedCheckpointError as error:
        raise ConfigError(f"checkpoint '{path}' cannot be read: {error}") from error


def checkpoint_progress(path: Path) -> Progress:
    """How far the run was that saved a checkpoint.

    Raises:
        ConfigError: not a checkpoint of a training run.
    """
    content = _torch_load(path / EXTRAS if is_sharded(path) else path)
    try:
        date = content.get("ToolDialogueDataModule", {}).get("date")
        return Progress(int(content["rollout_step"]), int(content["global_step"]), date)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"checkpoint '{path}': expected the keys rollout_step and global_step, found not both."
        ) from error


def checkpoint_digest(path: Path) -> str:
    """Digest of a checkpoint's content without reading it all: it costs the same for 100 GB.

    A file of `torch.save` is a zip archive whose directory holds name, size and CRC-32 of every tensor; so is every
    part of a tensor in a folder of shards. The digest is over these, so it tells any two training states apart. Of a
    folder it covers the weights alone.

    Raises:
        ConfigError: not such a file or folder.
    """
    try:
        if is_sharded(path):
            entries = list(Shards(path).checksums())
        else:
            with zipfile.ZipFile(path) as archive:
                entries = [(e.filename.partition("/")[2], e.file_size, e.CRC) for e in archive.infolist()]
    except zipfile.BadZipFile as error:
        raise ConfigError(f"checkpoint '{path}': expected a whole file of torch.save, found no such file.") from error
    except DamagedCheckpointError as error:
        raise ConfigError(f"checkpoint '{path}': expected a whole folder of shards: {error}") from error
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


class _File:
    """A checkpoint in one file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        content = _torch_load(path)
        state = content.get("state_dict") if isinstance(content, dict) else None
        entries = state.items() if isinstance(state, dict) else ()
        self._tensors = {name: value for name, value in entries if isinstance(value, Tensor)}
        self.found = str(sorted(content)[:8] if isinstance(content, dict) else type(content).__name__)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self._tensors[name])


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"checkpoint '{path}' cannot be read; is it whole? PyTorch says: {reason}") from error


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
        found: for messages.

    Raises:
        DamagedCheckpointError: no metadata, metadata that cannot be read, or files that are missing or too short.
    """

    found = "no tensors"

    def __init__(self, folder: Path, key: str = "state_dict") -> None:
        self._folder, self._key = folder, f"{key}."
        self._reader = _Reader(folder)
        if not (folder / METADATA).is_file():
            raise DamagedCheckpointError(f"no {METADATA}, which is written last: was saving it cut off?")
        try:
            self._metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, KeyError, IndexError) as error:
            raise DamagedCheckpointError(f"its {METADATA} cannot be read: {error}") from error
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
            DamagedCheckpointError: a part cannot be read.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner({self._key + name: tensor for name, tensor in tensors.items()}, self._metadata, True)
        try:
            self._reader.read_data(planner.create_local_plan(), planner).wait()
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DamagedCheckpointError(f"a shard cannot be read: {reason}") from error

    def checksums(self) -> Iterator[tuple[str, int, int]]:
        """Place, size and CRC-32 of everything stored below the key, from the files' directories, in a fixed order.

        Every part is a zip archive whose directory, at its end, has a checksum of each entry.

        Raises:
            DamagedCheckpointError: a part is no such archive.
        """
        parts = sorted(self._parts(), key=lambda part: (part[0].fqn, tuple(part[0].offset or ())))
        for index, path, end, length in parts:
            with path.open("rb") as file:
                size = min(length, _DIRECTORY_BYTES)
                file.seek(end - size)
                directory = io.BytesIO(file.read(size))
            try:
                with zipfile.ZipFile(directory) as archive:
                    for entry in archive.infolist():
                        place = f"{index.fqn}{tuple(index.offset or ())}:{entry.filename}"
                        yield place, entry.file_size, entry.CRC
            except zipfile.BadZipFile as error:
                raise DamagedCheckpointError(f"'{path.name}' is damaged at {index.fqn}.") from error

    def _parts(self) -> Iterator[tuple[MetadataIndex, Path, int, int]]:
        """Which part of a tensor lies in which file, the byte where it ends there, and its length in bytes."""
        stored: dict[MetadataIndex, Any] = self._metadata.storage_data
        for index, info in stored.items():
            if index.fqn.startswith(self._key):
                yield index, self._folder / info.relative_path, info.offset + info.length, info.length

    def _check_files(self) -> None:
        """All parts that the metadata names are there."""
        ends: dict[Path, int] = defaultdict(int)
        found: dict[str, int] = defaultdict(int)
        for index, path, end, _ in self._parts():
            ends[path] = max(ends[path], end)
            found[index.fqn] += 1
        for file, end in ends.items():
            size = file.stat().st_size if file.is_file() else 0
            if size < end:
                wrong = f"has {size} bytes" if file.is_file() else "is missing"
                raise DamagedCheckpointError(f"'{file.name}' {wrong}, expected at least {end} bytes.")
        for name in self.shapes:
            entry = self._metadata.state_dict_metadata[self._key + name]
            if isinstance(entry, TensorStorageMetadata) and found[self._key + name] < len(entry.chunks):
                raise DamagedCheckpointError(
                    f"{name} has {found[self._key + name]} of its {len(entry.chunks)} parts; were all ranks' files "
                    "copied?"
                )
