"""The worker process: executes and judges one request after the other until stdin ends, as it does with the parent.

Run as `python -m src.environments.bfcl.worker SECONDS MEGABYTES`. Requests and answers are JSON, one a line, on stdin
and stdout. The parent kills this process at the time limit (if the parent is gone, an alarm does, a little later). The
other limits are set here: of memory, no file output, no core file, and audit events for files, processes, sockets and
imports raise. Calls are rebuilt from JSON and reach none of these; this holds even if they could.

No request leaves anything behind (`official.fresh_state`). After one that ran out of memory the process ends, and with
it what may have been left half done.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

_IMPORTED_LATE = ("_strptime", "unicodedata")
"""What tools and Python's parser import on first use, when imports are refused."""
_REFUSED_EVENTS = tuple("open os. shutil. tempfile. glob. subprocess. socket. ctypes. resource. import".split())
_MAX_ANSWER = 1 << 24  # bytes; the longest of a gold run is below 1 << 16
_OUT_OF_MEMORY = b'{"passed": false, "error_type": "memory_limit"}'


def main() -> None:
    """Answer requests."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what tools print is no answer
    from src.environments.bfcl import official

    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    handlers = {
        "execute": official.execute,
        "check_single_turn": official.check_single_turn,
        "check_multi_turn": official.check_multi_turn,
    }
    alarm = 1.0 + 1.5 * float(sys.argv[1])
    _restrict(int(sys.argv[2]))
    _write(answers, b"{}")  # ready
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, alarm)  # its signal has no handler: the kernel ends the process
        try:
            request = json.loads(line)
            with official.fresh_state():
                answer = json.dumps(handlers[request["kind"]](request)).encode()
        except (MemoryError, official.OutOfMemoryError):
            answer = _OUT_OF_MEMORY
        except Exception:  # noqa: BLE001 - a bug, or data that are not the benchmark's: the parent raises it
            answer = json.dumps({"bug": traceback.format_exc()}).encode()
        if len(answer) > _MAX_ANSWER:
            answer = _OUT_OF_MEMORY
        _write(answers, answer)
        if answer is _OUT_OF_MEMORY:
            break
        signal.setitimer(signal.ITIMER_REAL, 0)


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
