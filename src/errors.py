"""What a run is refused for, in one message; and which errors say that memory ran out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from hydra.errors import CompactHydraException

_NO_MEMORY = re.compile(r"out of memory|_ALLOC(ATION)?_FAILED|DefaultCPUAllocator: (can't allocate|not enough) memory")
"""CUDA's runtime and driver, NCCL; cuBLAS, cuDNN and their like; PyTorch's allocator on a CPU."""


class Refusal(CompactHydraException):
    """Says all that a user needs: Hydra prints it without a traceback, which HYDRA_FULL_ERROR=1 shows."""


class ConfigError(Refusal, ValueError):
    """A config that cannot run as it is: names the keys, what was found, and what to change."""


class FileError(Refusal, FileNotFoundError):
    """A file that is not there or cannot be read: names it, and says what to do."""


class BenchmarkDataError(FileError):
    """The data of a benchmark is not there or cannot be read: names file and line, and says what to do."""


def check_fields(section: str, settings: object, rules: Iterable[tuple[str, bool, str]]) -> None:
    """Raise for the first rule that does not hold.

    Args:
        section: where the settings stand in the config, e.g. `optimizer`.
        settings: the object that has the fields.
        rules: (field, whether it is fine, what is expected).

    Raises:
        ConfigError: e.g. "optimizer.learning_rate: expected above 0, found -1.0."
    """
    for name, holds, expected in rules:
        if not holds:
            raise ConfigError(f"{section}.{name}: expected {expected}, found {getattr(settings, name)!r}.")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely means.

    >>> nearest("rollout_step", ["rollout_steps", "passes"])
    'rollout_steps'
    >>> nearest("zebra", ["rollout_steps", "passes"]) is None
    True
    """
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def advice(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What to say of an unknown name: the nearest one, or all there are.

    >>> advice("sed", ["seed", "data"]), advice("zebra", ["seed", "data"], "updates.")
    ('Did you mean seed?', 'Known here: updates.data, updates.seed.')
    """
    names = sorted(known)
    if (meant := nearest(name, names)) is not None:
        return f"Did you mean {prefix}{meant}?"
    return f"Known here: {', '.join(prefix + other for other in names)}." if names else "Nothing is known here."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host.

    `torch.OutOfMemoryError` is only what PyTorch's allocator of a device raises. The libraries below it raise a
    `RuntimeError` that says so in its text, and so does the allocator of a CPU.
    """
    import torch  # what raised the error has done so already

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
