"""Peak memory in this process. Only the standard library: contestants of peers use it too. Linux."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path


def mark() -> int:
    """Resident bytes now; the high-water mark starts anew from here.

    Memory that the allocator kept from earlier work is given back first, so that it is not missing from the peak.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_since(start: int) -> int:
    """Most bytes resident since `mark`, above what it returned."""
    return _status("VmHWM") - start


def peak_of(action: Callable[[], object]) -> int:
    """Most bytes that are resident while `action` runs, above what was before it."""
    start = mark()
    action()
    return peak_since(start)


def _status(key: str) -> int:
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{key}:") + 1]) * 1024
