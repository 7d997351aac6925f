"""Tools of MCP servers: real ones, in processes of their own."""

import builtins
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from src.environments.mcp import McpEnvironment, _Printed
from src.environments.protocol import EnvironmentFaultError, EpisodeScore
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.rest import parse, step_text
from src.rewards.functions.user_function import RewardError
from tests.conftest import ROOT

SERVER = Path(__file__).with_name("sqlite_server.py")
COMMAND = [sys.executable, str(SERVER)]
DIED = "Error: the tools have ended unexpectedly. This call has no result."
REWARDS = """
def notes(row, messages):
    assert [message["role"] for message in messages][0] == "user"
    said = [message["content"] for message in messages if message["role"] == "tool"]
    return said.count(row["wanted"])
def none(row, messages):
    return None
def bad(row, messages):
    return float("nan")
def raising(row, messages):
    return row["nothing"]
"""


def answer(*calls, text=""):
    return parse(step_text(Message("assistant", text, calls=calls)))


def said(episode, *calls):
    episode.observe()
    episode.act(answer(*calls))
    return [one.text for one in episode.observe()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Write it down.", "wanted": "1"}))
    path.with_name("rewards.py").write_text(REWARDS)
    return path


@pytest.fixture(scope="module")
def notes(rows, tmp_path_factory):
    """An environment of which nothing is left, whatever its servers did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOWN_TO_SERVER", "shown-to-servers-only")
        patch.setenv("API_KEY", "hunter2-hunter2")
        patch.setenv("TMPDIR", str(temporary := tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.5)
        patch.setattr("mcp.client.stdio.FORCE_KILL_TIMEOUT", 0.5)
        options = {"time_limit": 8.0, "result_limit": 300, "variables": ["SHOWN_TO_SERVER"]}
        made = McpEnvironment(str(rows), COMMAND, reward=f"{rows.with_name('rewards.py')}:notes", **options)
        yield made
        made.close()
        made.close()
        assert psutil.Process().children(recursive=True) == [] and list(temporary.iterdir()) == []
        assert [thread.name for thread in threading.enumerate() if thread.name == "mcp"] == []


@pytest.fixture
def episode(notes):
    """An episode whose server ends with it."""
    started = notes.start(notes.tasks("train")[0], seed=0)
    (server,) = psutil.Process().children()
    yield started
    started.close()
    started.close()
    assert not server.is_running() and psutil.Process().children(recursive=True) == []


def test_an_episode(episode):
    assert [tool.name for tool in episode.tools] == ["add_note", "query", "wait", "misbehave"]
    assert episode.tools[1].required == ("sql",) and episode.tools[1].parameters["limit"]["default"] == 10
    assert [one.text for one in episode.observe()] == ["Write it down."]
    assert said(episode, ToolCall("add_note", {"text": "Grüße"})) == ["1"]
    assert said(episode, ToolCall("query", {"sql": "select id, text from notes"})) == ["1\nGrüße"]
    assert said(episode, ToolCall("query", {}), ToolCall("note", {})) == [
        "Error: wrong arguments for query: 'sql' is a required property.",
        "Error: there is no tool 'note'. The tools are: add_note, query, wait, misbehave.",
    ]
    begin = time.monotonic()
    waits = [ToolCall("wait", {"seconds": seconds}) for seconds in (0.5, 0.4, 0.5)]
    assert said(episode, *waits) == ["waited 0.5", "waited 0.4", "waited 0.5"]
    assert time.monotonic() - begin < 1.2
    episode.act(answer(text="Done."))
    assert episode.done and episode.counts == {"wrong_arguments": 1, "unknown_tool": 1}
    assert episode.score() == EpisodeScore(1.0, {"environment": 1.0}, (0.0, 0.0, 0.0, 0.0, 1.0), True)


def test_what_a_server_says_is_data(episode):
    def misbehave(how):
        (text,) = said(episode, ToolCall("misbehave", {"how": how}))
        return text

    assert misbehave("image") == "image\n[image image/png, not included]"
    assert misbehave("error") == "Error: error" and episode.counts == {"tool_error": 1}
    assert said(episode, ToolCall("query", {"sql": "nonsense"}))[0].startswith("Error")
    raised = misbehave("raise")
    assert raised.startswith("Error") and "shown-to" not in raised and "episode-" not in raised
    assert misbehave("long") == "é" * 300 + "\n… 2,999,700 of 3,000,000 characters left out."
    assert misbehave("secret") == "[]" and misbehave("folder") == "True"
    assert misbehave("stderr") == "stderr" and misbehave("child") == "child" and misbehave("stdout") == "stdout"
    assert episode.counts == {"tool_error": 3, "cut_result": 1}


def test_what_a_server_prints_is_told_once(rows, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("mcp.client.stdio"), "filters", [_Printed()])
    prints = f"print('starting\\nup', flush=True); import runpy; runpy.run_path({COMMAND[1]!r}, run_name='__main__')"
    made = McpEnvironment(str(rows), [COMMAND[0], "-c", prints])
    episode = made.start(made.tasks("train")[0], seed=0)
    assert said(episode, ToolCall("add_note", {"text": "tea"})) == ["1"]
    episode.close()
    made.close()
    (record,) = [one for one in caplog.records if one.name == "mcp.client.stdio"]
    assert record.levelname == "WARNING" and record.exc_info is None and "prints to stdout" in record.getMessage()


def test_a_server_that_dies_is_answered_and_the_next_episode_has_a_new_one(notes, episode):
    wait = ToolCall("wait", {"seconds": 0.01})
    assert said(episode, ToolCall("misbehave", {"how": "exit"})) == [DIED]
    assert said(episode, wait, wait) == [DIED, DIED] and not episode.done and episode.counts == {"tool_died": 3}
    episode.act(answer(text="Sorry."))
    assert episode.done and episode.score().total == 0.0
    again = notes.start(notes.tasks("train")[0], seed=0)
    assert said(again, wait) == ["waited 0.01"]
    assert said(again, wait, ToolCall("misbehave", {"how": "kill"}), wait)[1] == DIED and said(again, wait) == [DIED]
    again.close()


def test_a_server_that_hangs_is_answered_and_ended(episode):
    assert said(episode, ToolCall("misbehave", {"how": "hang"})) == ["Error: the call did not end within 8 seconds."]
    assert said(episode, ToolCall("add_note", {"text": "x"})) == [DIED]
    assert episode.counts == {"timeout": 1, "tool_died": 1}


def test_episodes_are_private_and_may_be_closed_by_the_environment(rows):
    made = McpEnvironment(str(rows), COMMAND)
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(made.start(made.tasks("train")[0], 0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said(one, ToolCall("add_note", {"text": "x"})) for one in found] == [["1"], ["1"]]
    servers = psutil.Process().children()
    assert len(servers) == 2
    made.close()
    assert not any(server.is_running() for server in servers)
    assert said(found[0], ToolCall("add_note", {"text": "x"})) == [DIED]
    assert found[0].score() == EpisodeScore(0.0, {}, (0.0, 0.0), False)
    found[0].close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["no-such-server", "--now"], r"`no-such-server --now` does not start: .*No such file.*\(nothing\)"),
        (
            [sys.executable, "-c", "import sys; sys.exit('no database')"],
            r"Connection closed\. On stderr:\nno database$",
        ),
        ([sys.executable, "-c", "print('hello')"], "does not start: Connection closed"),
        ("sleep 985", "`sleep 985` does not start: no answer within 1 seconds"),
    ],
)
def test_a_server_that_does_not_start_is_one_clear_error(rows, command, words):
    made = McpEnvironment(str(rows), command, start_limit=1.0 if "sleep" in command else 30.0)
    with pytest.raises(EnvironmentFaultError, match=rf"(?s)^The MCP server .*{words}"):
        made.start(made.tasks("train")[0], seed=0)
    made.close()
    assert psutil.Process().children(recursive=True) == []


FLAKY = """
import runpy, sys
from pathlib import Path
starts = Path(sys.argv.pop(1))
starts.write_text(starts.read_text() + "." if starts.exists() else ".")
if starts.read_text() == ".." or Path(f"{starts}.gone").exists():
    sys.exit("out of luck")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_a_server_that_once_worked_is_started_again_until_it_is_gone_for_good(rows, tmp_path, caplog):
    (tmp_path / "flaky.py").write_text(FLAKY)
    starts = tmp_path / "starts"
    made = McpEnvironment(str(rows), [sys.executable, str(tmp_path / "flaky.py"), str(starts), *COMMAND[1:]])
    (task,) = made.tasks("train")
    for _ in range(2):
        made.start(task, 0).close()
    assert starts.read_text() == "..." and "out of luck Trying again." in caplog.text
    (tmp_path / "starts.gone").touch()
    made.start_limit = 4.0
    with pytest.raises(EnvironmentFaultError, match="Connection closed"):
        made.start(task, 0)
    assert len(starts.read_text()) >= 5
    made.close()


def test_streamable_http(rows, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = McpEnvironment(str(rows), url=f"http://127.0.0.1:{port}/mcp", time_limit=5.0, headers={"X-Key": "$HOME"})
    with pytest.raises(
        EnvironmentFaultError, match=rf"The MCP server at http://127\.0\.0\.1:{port}/mcp cannot be reached"
    ):
        made.start(made.tasks("train")[0], seed=0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*COMMAND, str(port)], stderr=log, stdout=log, env=environment)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        episode = made.start(made.tasks("train")[0], seed=0)
        assert said(episode, ToolCall("add_note", {"text": "x"}), ToolCall("wait", {"seconds": 0.1})) == [
            "1",
            "waited 0.1",
        ]
        assert said(episode, ToolCall("misbehave", {"how": "error"})) == ["Error: error"]
        for name, error, words in (
            ("bad", RewardError, r"expected a finite number or None, found nan\. Mend .*rewards\.py:bad"),
            ("raising", KeyError, "nothing"),
        ):
            scored = McpEnvironment(str(rows), url=made.url, reward=f"{rows.with_name('rewards.py')}:{name}")
            other = scored.start(scored.tasks("train")[0], seed=0)
            other.act(answer(text="Done."))
            with pytest.raises(error, match=words):
                other.score()
            scored.close()
        process.kill()
        process.wait()
        assert said(episode, ToolCall("add_note", {"text": "x"})) == [DIED]
        assert episode.counts == {"tool_error": 1, "tool_died": 1}
        episode.close()
    finally:
        process.kill()
        process.wait()
        made.close()


def test_what_cannot_be_is_refused(rows, monkeypatch):
    for options in ({}, {"command": ["x"], "url": "http://localhost"}):
        with pytest.raises(ConfigError, match="expected either command or url"):
            McpEnvironment(str(rows), **options)
    with pytest.raises(ConfigError, match=r"environment\.time_limit: expected seconds above 0, found 0"):
        McpEnvironment(str(rows), COMMAND, time_limit=0)
    with pytest.raises(ConfigError, match=r"environment\.reward: .*has no function 'notess'\. Did you mean notes\?"):
        McpEnvironment(str(rows), COMMAND, reward=f"{rows.with_name('rewards.py')}:notess")
    real = builtins.__import__

    def absent(name, *arguments, **more):
        if name.partition(".")[0] == "mcp":
            raise ImportError("No module named 'mcp'")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"MCP servers need the package mcp .*pip install mcp==2\.3\.0"):
        McpEnvironment(str(rows), COMMAND)


@pytest.mark.slow
def test_a_trainer_that_is_killed_leaves_no_server(rows, tmp_path):
    program = (
        "import time; from src.environments.mcp import McpEnvironment\n"
        f"made = McpEnvironment({str(rows)!r}, {COMMAND!r})\n"
        "episode = made.start(made.tasks('train')[0], 0)\nprint('ready', flush=True)\ntime.sleep(99)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        (server,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert psutil.wait_procs([server], timeout=10)[1] == []
