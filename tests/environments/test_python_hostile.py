"""Whatever a tool does, it is answered in words and counted, and nothing of it is left."""

import os
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from src.environments.python import PythonEnvironment
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse, step_text

TOOLS = Path(__file__).with_name("hostile_tools.py")
SECRET = "hunter2-hunter2"

FINE = {
    "none": ("", "null"),
    "nan": ("result = float('nan')", "nan"),
    "infinity_inside": ("result = [1, float('inf')]", "[1, inf]"),
    "set": ("result = {1}", "{1}"),
    "unhashable": ("result = [{}, []]", "[{}, []]"),
    "object": ("result = object()", "<object object>"),
    "function": ("result = lambda: 1", "<function <lambda>>"),
    "tuple_keys": ("result = {(1, 2): 3}", "{(1, 2): 3}"),
    "cycle": ("result = []; result.append(result)", "[[...]]"),
    "invalid_utf8": (r"result = b'a\xff\xfeb'", "a\ufffd\ufffdb"),
    "bytearray": ("result = bytearray(b'ab')", "ab"),
    "surrogate": (r"result = 'a\ud800b'", "a?b"),
    "surrogate_in_json": (r"result = ['\udfff']", '["?"]'),
    "nul": (r"result = 'a\0b'", "a\0b"),
    "newlines": (r"result = '\n{}\n'", "\n{}\n"),
    "hostile_str": ("class S(str):\n    def __str__(self): raise ValueError\nresult = S('text')", "text"),
    "coroutine": ("async def late(): return 7\nresult = late()", "7"),
    "generator": ("result = (x for x in 'ab')", "<generator object <genexpr>>"),
    "prints": ("print('noise'); import sys; print('noise', file=sys.stderr); result = 1", "1"),
    "prints_megabytes": ("print('x' * 10_000_000); result = 1", "1"),
    "writes_descriptors": ("import os\nfor fd in (0, 1, 2): os.write(fd, b'{}\\n')\nresult = 1", "1"),
    "closes_stdin": ("import sys, os; sys.stdin.close(); result = 1", "1"),
    "closes_standard_descriptors": ("import os; os.closerange(0, 3); result = 1", "1"),
    "no_stdout": ("import sys; sys.stdout = sys.stderr = None; result = 1", "1"),
    "logs": ("import logging, warnings; logging.error('x'); warnings.warn('x'); result = 1", "1"),
    "daemon_thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(999,), daemon=True).start()\nresult = 1",
        "1",
    ),
    "thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(999,)).start()\nresult = 1", "1"),
    "raising_thread": ("import threading\nthreading.Thread(target=lambda: 1 / 0).start()\nresult = 1", "1"),
    "child": ("import subprocess; subprocess.Popen(['sleep', '999']); result = 1", "1"),
    "child_with_a_session": (
        "import subprocess; subprocess.Popen(['sleep', '999'], start_new_session=True); result = 1",
        "1",
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(999)\n"
        "    os._exit(0)\nresult = 1",
        "1",
    ),
    "returns_twice": ("import os; result = 'parent' if os.fork() else 'child'", "parent"),
    "child_answers_for_the_parent": (
        "import os, time\nif os.fork() == 0:\n    self.reward = 99\n    result = 'child'\nelse:\n    time.sleep(0.1)\n"
        "    result = 'parent'",
        "parent",
    ),
    "zombies": ("import os\nfor _ in range(5):\n    if os.fork() == 0: os._exit(0)\nresult = 1", "1"),
    "multiprocessing": (
        "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\np.start(); p.join()\nresult = 1",
        "1",
    ),
    "leaves_its_folder": ("import os; os.chdir('/'); result = 1", "1"),
    "deletes_its_folder": ("import os, shutil; shutil.rmtree(os.getcwd()); result = 1", "1"),
    "locks_its_folder": (
        "import os; os.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0); "
        "os.chmod('.', 0); result = 1",
        "1",
    ),
    "nests_its_folder": (
        "import os\nfor _ in range(1050):\n    os.mkdir('d')\n    os.chdir('d')\nos.chmod('..', 0)\nresult = 1",
        "1",
    ),
    "links_out_of_its_folder": ("import os; os.symlink('/', 'root'); os.symlink('/etc', 'etc'); result = 1", "1"),
    "strange_file_names": ("open('a\\nb\\udcff', 'w').close(); result = 1", "1"),
    "clears_the_environment": ("import os; os.environ.clear(); result = 1", "1"),
    "ignores_signals": (
        "import signal\nfor one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(one, signal.SIG_IGN)\n"
        "result = 1",
        "1",
    ),
    "blocks_signals": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); result = 1",
        "1",
    ),
    "hangs_at_exit": ("import atexit, time; atexit.register(time.sleep, 999); result = 1", "1"),
    "traces": ("import sys; sys.settrace(lambda *_: None); result = 1", "1"),
    "clears_modules": ("import sys; sys.modules.clear(); result = 1", "1"),
    "unbalanced_collector": ("import gc; gc.disable(); gc.set_threshold(0); result = 1", "1"),
    "no_secrets": (f"import os; result = [k for k, v in os.environ.items() if {SECRET!r} in v]", "[]"),
    "own_folders": (
        "import os, tempfile; result = [os.path.expanduser('~'), tempfile.gettempdir()] == [os.getcwd()] * 2",
        "true",
    ),
}
CUT = {
    "megabytes": "result = 'x' * 50_000_000",
    "megabytes_of_bytes": "result = bytes(20_000_000)",
    "long_list": "result = list(range(1_000_000))",
    "wide_characters": "result = '🙂' * 2_000_000",
    "long_error": "raise ValueError('x' * 20_000_000)",
    "deep_list": "result = []\nfor _ in range(900): result = [result] * 1 + ['x' * 10]",
}
ERRORS = {
    "exception": ("raise ValueError('no')", "ValueError: no"),
    "key_error": ("{}['a']", "KeyError: 'a'"),
    "assertion": ("assert False", "AssertionError"),
    "division": ("1 / 0", "ZeroDivisionError: division by zero"),
    "unknown_name": ("nothing", "NameError"),
    "syntax": ("def", "SyntaxError"),
    "import": ("import nothing_of_the_kind", "ModuleNotFoundError"),
    "base_exception": ("raise BaseException('b')", "BaseException: b"),
    "system_exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "sys_exit": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "interrupt_by_signal": ("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(1)", "Keyboard"),
    "generator_exit": ("raise GeneratorExit", "GeneratorExit"),
    "stop_iteration": ("next(iter([]))", "StopIteration"),
    "stop_async_iteration": ("raise StopAsyncIteration", "StopAsyncIteration"),
    "cancelled": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "own_timeout": ("raise TimeoutError('slow')", "TimeoutError: slow"),
    "broken_pipe": ("raise BrokenPipeError", "BrokenPipeError"),
    "end_of_input": ("input()", "EOFError"),
    "raises_no_exception": ("raise 5", "TypeError"),
    "str_of_error_raises": ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
    "str_of_error_exits": ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E"),
    "str_of_error_is_none": ("class E(Exception):\n    def __str__(self): return 5\nraise E", "E"),
    "name_of_error_raises": (
        "class M(type):\n    __name__ = property(lambda c: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E('x')",
        "an exception",
    ),
    "surrogate_in_error": (r"raise ValueError('a\ud800')", "a?"),
    "group_of_errors": ("raise ExceptionGroup('g', [ValueError('a'), KeyError('b')])", "g (2 sub-exceptions)"),
    "repr_raises": ("class R:\n    def __repr__(self): raise ValueError('r')\nresult = R()", "ValueError: r"),
    "recursion": ("f = lambda: f()\nf()", "RecursionError"),
    "bottomless_list": ("result = []\nfor _ in range(10**5): result = [result]", "RecursionError"),
    "memory": ("x = 'x' * 10**10", "MemoryError"),
    "memory_in_steps": ("x = []\nwhile True: x.append(bytes(10**7))", "MemoryError"),
    "mapped_memory": ("import mmap; mmap.mmap(-1, 10**11)", "OSError"),
    "threads_without_end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(999,), daemon=True).start()",
        "RuntimeError: can't start new thread",
    ),
    "forks_without_end": ("import os\nwhile True: os.fork()", "PermissionError: more than 20 processes"),
    "processes_without_end": (
        "import subprocess\nwhile True: subprocess.Popen(['sleep', '999'])",
        "PermissionError: more than 20 processes",
    ),
    "detached_processes_without_end": (
        "import os, time\nwhile True:\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(999)",
        "PermissionError: more than 20 processes",
    ),
    "large_file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(10**7)); f.flush()", "File too large"),
    "long_integer": ("result = 10**5000", "ValueError"),
    "kills_its_parent": ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    "kills_all": ("import os; os.kill(-1, 9)", "Error"),
    "kills_the_parents_group": ("import os; os.killpg(os.getpgid(os.getppid()), 9)", "PermissionError"),
    "kills_the_trainer": (f"import os; os.kill({os.getpid()}, 9)", "PermissionError"),
    "raises_limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 50, resource.RLIM_INFINITY)); 1 / 0",
        "Error",
    ),
    "path_in_error": ("open('nothing')", "No such file or directory: 'nothing'"),
    "folder_in_error": ("import os; raise ValueError('in ' + os.getcwd() + '/x')", "ValueError: in …/x"),
    "source_in_error": (f"raise ValueError({str(TOOLS)!r})", "ValueError: …/hostile_tools.py"),
    "variable_in_error": ("import os; raise ValueError(os.environ['SHOWN_TO_TOOLS'])", "ValueError: …"),
    "coroutine_raises": ("async def late(): raise SystemExit('late')\nresult = late()", "SystemExit: late"),
}
DIED = {
    "breaks_json": "import json; json.dumps = None; result = []",
    "exit": "import os; os._exit(0)",
    "exit_with_error": "import os; os._exit(77)",
    "leaves_a_child": "import os, time\nif os.fork() == 0: time.sleep(999)\nos._exit(0)",
    "abort": "import os; os.abort()",
    "kills_itself": "import os; os.kill(os.getpid(), 9)",
    "kills_its_group": "import os; os.killpg(0, 9)",
    "terminates_itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "segmentation_fault": "import ctypes; ctypes.string_at(0)",
    "exhausts_the_stack": "import sys; sys.setrecursionlimit(10**9)\nf = lambda x: f([x])\n"
    "class R:\n    def __getattr__(self, name): return getattr(self, name + 'x')\nR().a",
    "becomes_another_program": "import os; os.execv('/bin/true', ['true'])",
    "becomes_a_noisy_program": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo {}; sleep 0.1'])",
    "closes_all_descriptors": "import os; os.closerange(0, 1000); result = 1",
    "writes_to_the_protocol": "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'{\"index\": 0}\\n')\n"
    "    except OSError: pass\nresult = 1",
    "floods_the_protocol": "import os\nwhile True:\n    for fd in range(3, 60):\n"
    "        try: os.write(fd, b'x' * 65536)\n        except OSError: pass",
    "writes_no_json_to_the_protocol": "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'\\xff\\n')\n"
    "    except OSError: pass\nresult = 1",
    "nests_json_without_end": "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'[' * 20000 + b'\\n')\n"
    "    except OSError: pass\nresult = 1",
    "forges_with_a_broken_encoder": "import json; json.dumps = lambda *_, **__: '{}'; result = []",
    "forges_its_size": "import json\nold = json.dumps\nresult = 'x'\n"
    "json.dumps = lambda x, **k: old({**x, 'size': -1} if 'size' in x else x)",
    "kills_its_parent_by_ctypes": "import ctypes, os, time; ctypes.CDLL(None).kill(os.getppid(), 9); time.sleep(9)",
}
HANGS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(999)",
    "stop": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "pause": "import signal; signal.pause()",
    "lock": "import threading; a = threading.Lock(); a.acquire(); a.acquire()",
    "child": "import subprocess; subprocess.run(['sleep', '999'])",
    "child_stops_parent": "import os, signal, time\nif os.fork() == 0:\n    os.kill(os.getppid(), signal.SIGSTOP)\n"
    "    os._exit(0)\ntime.sleep(999)",
    "blocked_signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: pass",
    "swallows_everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "regular_expression": "import re; re.match('(a*)*$', 'a' * 40 + 'b')",
    "in_c": "pow(7, 10**8)",
    "str_of_error": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "repr_of_result": "class R:\n    def __repr__(self):\n        while True: pass\nresult = R()",
    "threads": "import threading\ndef spin():\n    while True: pass\n"
    "for _ in range(4): threading.Thread(target=spin).start()\nspin()",
    "forks_and_hangs": "import os\nfor _ in range(3): os.fork()\nwhile True: pass",
    "coroutine": "import asyncio\nresult = asyncio.Event().wait()",
    "selects": "import select; select.select([], [], [])",
}
ASYNC = {
    "async_sleep": ("import asyncio\nasync def main(): await asyncio.sleep(999)", "timeout"),
    "async_loop": ("async def main():\n    while True: pass", "timeout"),
    "async_exit": ("async def main(): raise SystemExit('a')", "tool_error"),
    "async_interrupt": ("async def main(): raise KeyboardInterrupt", "tool_error"),
    "async_cancelled": ("import asyncio\nasync def main(): raise asyncio.CancelledError", "tool_error"),
    "async_cancels_all": (
        "import asyncio\nasync def main():\n    for task in asyncio.all_tasks(): task.cancel()\n"
        "    await asyncio.sleep(9)",
        "tool_error",
    ),
    "async_stops_the_loop": (
        "import asyncio\nasync def main():\n    asyncio.get_running_loop().stop()\n    await asyncio.sleep(9)",
        "tool_error",
    ),
    "async_closes_the_loop": (
        "import asyncio\nasync def main(): asyncio.get_running_loop().close()",
        "tool_error",
    ),
    "async_leaves_a_task": (
        "import asyncio\nasync def main():\n    asyncio.get_running_loop().create_task(asyncio.sleep(999))\n"
        "    return 1",
        "",
    ),
    "async_dies": ("import os\nasync def main(): os._exit(0)", "tool_died"),
}


def _environment(folder, time_limit):
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "Go."}\n')
    limits = {"time_limit": time_limit, "memory_limit_mb": 256, "process_limit": 20, "result_limit": 500}
    return PythonEnvironment(
        f"{TOOLS}:Interpreter", str(rows), variables=["SHOWN_TO_TOOLS"], lost_reward=-1.0, **limits
    )


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """By whether a tool is to run into the time limit. Nothing is left of them, whatever the tools did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOWN_TO_TOOLS", "shown-to-tools-only")
        patch.setenv("API_KEY", SECRET)
        patch.setenv("TMPDIR", str(temporary := tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        before = set(psutil.Process().children(recursive=True))
        found = {
            hangs: _environment(tmp_path_factory.mktemp("rows"), 0.5 if hangs else 20.0) for hangs in (False, True)
        }
        yield found
        for one in found.values():
            one.close()
            one.close()
        assert set(psutil.Process().children(recursive=True)) == before
        assert list(temporary.iterdir()) == []


def answer(*calls):
    return parse(step_text(Message("assistant", calls=calls)))


def play(environment, code, tool="run"):
    """What a tool answers to code, and what is counted; nothing of the episode is left."""
    before = set(psutil.Process().children(recursive=True))
    episode = environment.start(environment.tasks("train")[0], seed=0)
    try:
        episode.observe()
        episode.act(answer(ToolCall(tool, {"code": code})))
        (message,) = episode.observe()
        score = episode.score()
    finally:
        episode.close()
        episode.close()
    lost = episode.counts.keys() & {"timeout", "tool_died"}
    assert episode.done == bool(lost) and score.total == (-1.0 if lost else 1.0)
    assert "Traceback" not in message.text and SECRET not in message.text and "shown-to" not in message.text
    assert message.name == tool and len(message.text) < 600
    message.text.encode()
    deadline = time.monotonic() + 5
    while extra := set(psutil.Process().children(recursive=True)) - before - _servers():
        assert time.monotonic() < deadline, extra
        time.sleep(0.01)
    return message.text, dict(episode.counts)


def _servers():
    """The processes that fork workers."""
    return set(psutil.Process().children())


@pytest.mark.parametrize("name", FINE)
def test_strange_but_fine(environments, name):
    code, expected = FINE[name]
    assert play(environments[False], code) == (expected, {})


@pytest.mark.parametrize("name", CUT)
def test_too_much_is_cut(environments, name):
    text, counts = play(environments[False], CUT[name])
    assert text.endswith("characters left out.")
    assert counts.pop("cut_result") == 1 and set(counts) <= {"tool_error"}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_answered(environments, name):
    code, words = ERRORS[name]
    text, counts = play(environments[False], code)
    assert text.startswith("Error: ") and words in text and counts == {"tool_error": 1}


@pytest.mark.parametrize("name", DIED)
def test_a_process_that_ends_is_answered(environments, name):
    text, counts = play(environments[False], DIED[name])
    assert text == "Error: the tools have ended unexpectedly. This call has no result." and counts == {"tool_died": 1}


QUICK = "loop stop child blocked_signals swallows_everything repr_of_result threads forks_and_hangs".split()


@pytest.mark.parametrize("name", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in HANGS])
def test_hangs_are_answered(environments, name):
    text, counts = play(environments[True], HANGS[name])
    assert text == "Error: the call did not end within 0.5 seconds." and counts == {"timeout": 1}


@pytest.mark.parametrize("name", ASYNC)
def test_async_tools(environments, name):
    code, problem = ASYNC[name]
    text, counts = play(environments[problem == "timeout"], code, "run_async")
    assert counts == ({problem: 1} if problem else {}) and text.startswith("Error: ") == bool(problem)
