"""The worker process: judges and executes one request at a time, each in a fork of its own.

Run as `python -m src.evaluation.bfcl.worker SECONDS MEGABYTES`; requests and answers are JSON, one a line, on stdin and
stdout. A fork starts from the state that this process had after its imports and is gone after the answer, or is killed
at the time limit. So nothing is left of an entry: no tool instance in the package's module globals, no precision that
a tool set in mpmath or decimal, no memory.

In the fork, Python's audit events for files, processes, sockets and imports raise. Calls are rebuilt from JSON and
could reach none of that; this holds even if they could.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

_PRELOADED = ("_strptime", "unicodedata")
"""What tools and the parser would import on first use, when imports are refused."""
_REFUSED_EVENTS = ("open", "os.", "shutil.", "tempfile.", "glob.", "subprocess.", "socket.", "ctypes.", "import")
_MAX_ANSWER = 1 << 24  # bytes; the longest of a gold run is below 1 << 20


def main() -> None:
    """Answer requests until stdin ends, which it does with the parent."""
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    answers = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what tools print is not an answer
    from src.evaluation.bfcl import official

    for name in _PRELOADED:
        __import__(name)
    handlers = {
        "execute": official.execute,
        "check_single_turn": official.check_single_turn,
        "check_multi_turn": official.check_multi_turn,
    }
    gc.freeze()
    _write(answers, b"{}\n")  # ready
    for line in sys.stdin.buffer:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _answer(handlers, official.OutOfMemoryError, line, writer, megabytes)
        os.close(writer)
        _write(answers, _collect(child, reader, seconds) + b"\n")


def _answer(
    handlers: dict[str, Any], out_of_memory: type[BaseException], line: bytes, writer: int, megabytes: int
) -> NoReturn:
    """In the fork: answer one request and exit."""
    try:
        _restrict(megabytes)
        request = json.loads(line)
        answer = json.dumps(handlers[request["kind"]](request)).encode()
        if len(answer) > _MAX_ANSWER:
            raise MemoryError
    except (MemoryError, out_of_memory):
        answer = b'{"passed": false, "error_type": "memory_limit"}'
    except BaseException:  # noqa: BLE001 - a bug here: the parent raises it
        answer = json.dumps({"bug": traceback.format_exc()}).encode()
    _write(writer, answer)
    os._exit(0)


def _collect(child: int, reader: int, seconds: float) -> bytes:
    """The answer of a fork, or why there is none. Ends it."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    chunks = []
    ended = False
    while not ended and (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            chunks.append(os.read(reader, 1 << 16))
            ended = not chunks[-1]
    os.close(reader)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ended:
        return b'{"passed": false, "error_type": "time_limit"}'
    if os.WIFSIGNALED(status):  # the kernel ended it: out of memory, or out of stack
        return b'{"passed": false, "error_type": "memory_limit"}'
    return b"".join(chunks)


def _restrict(megabytes: int) -> None:
    """Limits of this process that nothing in it can lift."""
    limits = {resource.RLIMIT_AS: megabytes << 20, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, limit))
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event} is not available to tools")


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
