"""Results that cost seconds and follow from the sources alone, kept in a file between starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import sysconfig
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parents[1]
INSTALLED = tuple(sorted({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}))


class ResultCache:
    """Plain values by key, all made with the same sources and packages; others are forgotten.

    Args:
        file: JSON; None: nothing is kept.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._added: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """What was kept under the key; None if nothing was."""
        return self._added.get(key, self._kept.get(key))

    def put(self, key: str, value: Any) -> None:
        """Keep a plain value from the next `save` on."""
        self._added[key] = value

    def save(self) -> None:
        """Write what was added. A folder that cannot be written costs the next start its time, and nothing else."""
        if self.file is None or not self._added:
            return
        part = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        results = self._kept | self._added
        content = {"made_with": _made_with(), "digest": _digest(results), "results": results}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(self.file)
        except OSError as error:
            log.debug("'%s' cannot be written: %s", self.file, error)
            with suppress(OSError):
                part.unlink()

    @cached_property
    def _kept(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # none yet, or damaged: as good as none
            return {}
        if not isinstance(content, dict) or content.get("made_with") != _made_with():
            return {}
        results = content.get("results")
        return results if isinstance(results, dict) and content.get("digest") == _digest(results) else {}


def _digest(results: dict[str, Any]) -> str:
    """By which a file that something else has written is told from one of ours."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


@cache
def _made_with() -> str:
    """A digest of Python's version, the installed packages' names and versions, and the project's sources."""
    total = hashlib.sha256(sys.version.encode())
    for folder in INSTALLED:
        total.update(repr(sorted(name for name in os.listdir(folder) if name.endswith(".dist-info"))).encode())
    for path in sorted(SOURCES.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()
