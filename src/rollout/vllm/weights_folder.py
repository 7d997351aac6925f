"""The folder through which weights reach a server: whole versions of safetensors files, or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


class WeightsFolder:
    """A folder that one process writes and a server reads.

    Args:
        folder: made if missing; `version_*` in it belong to this object.
        dtype: of the tensors as written.
        shard_bytes: size of a file; a larger tensor has one of its own.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, *, shard_bytes: int) -> None:
        self.folder = folder
        self._dtype = dtype
        self._shard_bytes = shard_bytes

    def path(self, version: int) -> Path:
        """Where a version lies."""
        return self.folder / f"version_{version}"

    def write(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> Path:
        """Write a version. A reader sees all of it or nothing; one that is there already is replaced.

        Args:
            named_tensors: floating-point tensors of any device and type.
            version: of the weights.
        """
        partial = self.folder / f".version_{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shard: dict[str, Tensor] = {}
        size = count = 0
        for name, tensor in named_tensors:
            # a copy, so that two names of one tensor do not share memory, which the format refuses
            whole = tensor.detach().to("cpu", self._dtype, copy=True).contiguous()
            if shard and size + whole.nbytes > self._shard_bytes:
                save_file(shard, partial / f"weights-{count:05d}.safetensors")
                shard, size, count = {}, 0, count + 1
            shard[name] = whole
            size += whole.nbytes
        save_file(shard, partial / f"weights-{count:05d}.safetensors")
        target = self.path(version)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        return target

    def keep_only(self, version: int) -> None:
        """Remove all other versions."""
        for path in self.folder.glob("version_*"):
            if path != self.path(version):
                shutil.rmtree(path)
