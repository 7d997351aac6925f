"""The run folder before anything is written to it: nobody else's to change, writable, with room for what will come."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import ConfigError
from src.runs.config_file import HideHome, without_home

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PROBE = b"\0" * 4096
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems without locks, some cluster ones."""
GIB = 1 << 30

log = logging.getLogger(__name__)


def keep_to_owner() -> None:
    """From here on, what this process and its children make can be changed by its owner alone, whatever the umask."""
    os.umask(os.umask(0o077) | _OTHERS_MAY_WRITE)


def open_run_folder(folder: Path, given_as: str = "hydra.run.dir") -> None:
    """Make the run folder fit to be written to; what Hydra has put there loses the home folder's name.

    Args:
        folder: need not be there.
        given_as: the key that names it, for the message.

    Raises:
        ConfigError: it is a file, cannot be written, or its disk is full.
    """
    keep_to_owner()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"paths.output_dir: expected a folder, '{folder}' is a file. Set {given_as}=FOLDER.")
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & _OTHERS_MAY_WRITE:
            folder.chmod(mode & ~_OTHERS_MAY_WRITE)
        with probe.open("wb", buffering=0) as file:
            file.write(_PROBE)
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"paths.output_dir: '{folder}' cannot be written ({error.strerror}). Free space or rights there, or set "
            f"{given_as}=FOLDER."
        ) from error
    hide_home(folder)


@contextmanager
def held(folder: Path, given_as: str = "hydra.run.dir") -> Iterator[None]:
    """Keep other processes out of a folder: two runs would write the same records and checkpoints.

    The system lets go when this process ends, however it does.

    Args:
        folder: can be written.
        given_as: the key that names it, for the message.

    Raises:
        ConfigError: another process is in it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"paths.output_dir: another process is at work in '{folder}'. Wait for its end, or set "
                f"{given_as}=FOLDER."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.info("'%s' cannot be locked (%s): do not start a second run there.", folder, error.strerror)
        yield


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse a run that its disk has no room for.

    Args:
        folder: on the disk in question; need not be there yet.
        needed: bytes.
        what: for the message, e.g. "2 checkpoints of 1.2 GiB".

    Raises:
        ConfigError: less is free.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ConfigError(
            f"paths.output_dir: '{folder}' has {free / GIB:.1f} GiB free, expected at least {needed / GIB:.1f} GiB for "
            f"{what}. Free space there, set hydra.run.dir=FOLDER on another disk, or write no checkpoints with "
            "callbacks.checkpoint=null."
        )


def hide_home(folder: Path) -> None:
    """Take the home folder's name out of what Hydra has written to a folder, and of what its log files will get."""
    for file in (folder / ".hydra").glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if (shown := without_home(text)) != text:
            file.write_text(shown, encoding="utf-8")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and not any(isinstance(f, HideHome) for f in handler.filters):
            handler.addFilter(HideHome())
