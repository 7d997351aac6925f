"""The worker process: executes and judges one request after the other until stdin ends, as it does with the parent.

Run as `python -m src.evaluation.bfcl.worker MEGABYTES`. Requests and answers are JSON, one a line, on stdin and stdout.
The time limit is kept by the parent, which kills this process. Here are the other limits: of memory, no file output, no
core file, and audit events for files, processes, sockets and imports raise. Calls are rebuilt from JSON and cannot
reach any of these; this holds even if they could.

No request leaves anything behind (`official.fresh_state`). After one that ran out of memory the process ends, and with
it what may have been left half done.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from typing import Any

_IMPORTED_LATE = ("_strptime", "unicodedata")
"""What tools and Python's parser import on first use, when imports are refused."""
_REFUSED_EVENTS = ("open", "os.", "shutil.", "tempfile.", "glob.", "subprocess.", "socket.", "ctypes.", "import")
_MAX_ANSWER = 1 << 24  # bytes; the longest of a gold run is below 1 << 16
_OUT_OF_MEMORY = b'{"passed": false, "error_type": "memory_limit"}'


def main() -> None:
    """Answer requests."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what tools print is no answer
    from src.evaluation.bfcl import official

    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    handlers = {
        "execute": official.execute,
        "check_single_turn": official.check_single_turn,
        "check_multi_turn": official.check_multi_turn,
    }
    _restrict(int(sys.argv[1]))
    _write(answers, b"{}")  # ready
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            with official.fresh_state():
                answer = json.dumps(handlers[request["kind"]](request)).encode()
        except (MemoryError, official.OutOfMemoryError):
            answer = _OUT_OF_MEMORY
        except Exception:  # noqa: BLE001 - a bug, or data that are not the benchmark's: the parent raises it
            answer = json.dumps({"bug": traceback.format_exc()}).encode()
        _write(answers, answer if len(answer) <= _MAX_ANSWER else _OUT_OF_MEMORY)
        if answer is _OUT_OF_MEMORY:
            break


def _restrict(megabytes: int) -> None:
    """Put limits on this process that nothing in it can lift."""
    limits = {resource.RLIMIT_AS: megabytes << 20, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, limit))
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event} is not available to tools")


def _write(descriptor: int, answer: bytes) -> None:
    data = memoryview(answer + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
