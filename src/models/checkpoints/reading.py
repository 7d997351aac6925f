"""Checkpoints of training runs, files and folders of shards alike: the model's weights out of them. Reads only."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.errors import ConfigError
from src.models.checkpoints.shards import EXTRAS, METADATA, BrokenShardsError, Shards

_STATE_PREFIX = "policy.model."
_REFERENCE_PREFIX = "reference."  # the frozen start of a KL penalty: of use to training only


class Progress(NamedTuple):
    """How far a checkpoint's run was.

    Attributes:
        rollout_steps: done.
        optimizer_steps: done.
    """

    rollout_steps: int
    optimizer_steps: int


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint that is a folder of shards, whole or not."""
    return path.is_dir() and (path.suffix == ".ckpt" or any((path / name).is_file() for name in (METADATA, EXTRAS)))


def load_checkpoint(model: PreTrainedModel, path: Path) -> None:
    """Put the weights of a training checkpoint into a model on the CPU, every one that was trained.

    Frozen weights, those under adapters, may be missing: the model has them from where the run had them. Optimizer
    states are not read, and of a folder of shards only one part of a tensor is in memory at a time.

    Raises:
        ValueError: no checkpoint of a training run, a broken one, or one of another model.
    """
    state = _state(path)
    shapes = {name: shape for name, shape in state.shapes.items() if not name.startswith(_REFERENCE_PREFIX)}
    if not shapes or not all(name.startswith(_STATE_PREFIX) for name in shapes):
        raise ValueError(
            f"checkpoint '{path}': expected a state_dict with names '{_STATE_PREFIX}…' as src/train.py saves them, "
            f"found {list(shapes)[:3] if shapes else state.found}."
        )
    given = {name.removeprefix(_STATE_PREFIX): shape for name, shape in shapes.items()}
    wanted = model.state_dict()
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    problems = [f"missing {name}" for name in wanted if name not in given and name not in frozen]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {tuple(given[name])} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name] != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"checkpoint '{path}' does not fit {type(model).__name__}: {'; '.join(problems[:4])}{more}. Is "
            "config.yaml that of its run (policy.path, policy.lora), and base_path, if given, the right model?"
        )
    try:
        state.copy_into({_STATE_PREFIX + name: wanted[name] for name in given})
    except BrokenShardsError as error:
        raise ValueError(f"checkpoint '{path}' cannot be read: {error}") from error


def checkpoint_progress(path: Path) -> Progress:
    """How far the run was that saved a checkpoint.

    Raises:
        ValueError: not a checkpoint of a training run.
    """
    content = _torch_load(path / EXTRAS if is_sharded(path) else path)
    try:
        return Progress(int(content["rollout_step"]), int(content["global_step"]))
    except (KeyError, TypeError) as error:
        raise ValueError(
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
        entries = list(Shards(path).checksums()) if is_sharded(path) else _directory(path)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"checkpoint '{path}': expected a whole file of torch.save, found no such file.") from error
    except BrokenShardsError as error:
        raise ConfigError(f"checkpoint '{path}': expected a whole folder of shards: {error}") from error
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


class _State(Protocol):
    """The tensors of a checkpoint's `state_dict`."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]: ...

    @property
    def found(self) -> str: ...

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None: ...


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


class _Folder(Shards):
    """A checkpoint that is a folder of shards."""

    found = "no tensors"


def _state(path: Path) -> _State:
    if not is_sharded(path):
        return _File(path)
    try:
        return _Folder(path)
    except BrokenShardsError as error:
        raise ValueError(f"checkpoint '{path}' is not whole: {error}") from error


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint '{path}' cannot be read; is it whole? PyTorch says: {reason}") from error


def _directory(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and checksum of what a file of `torch.save` holds."""
    with zipfile.ZipFile(path) as archive:
        return [(e.filename.partition("/")[2], e.file_size, e.CRC) for e in archive.infolist()]
