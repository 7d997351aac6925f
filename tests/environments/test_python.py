"""A user's class or functions are played as TRL plays them."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.environments.protocol import EnvironmentFaultError, EpisodeScore, Task
from src.environments.python import PythonEnvironment
from src.errors import ConfigError
from src.protocol.dialogue import DataError, Message, ToolCall
from src.protocol.formats.rest import parse, step_text
from tests.conftest import ROOT

TOOLS = Path(__file__).with_name("python_tools.py")
ROWS = [
    {"prompt": "Buy tea.", "stock": {"tea": 2}},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Buy tea."}]},
]


def answer(*calls, text=""):
    return parse(step_text(Message("assistant", text, calls=calls)))


def environment(folder, names="Shop", rows=None, **options):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS if rows is None else rows)))
    return PythonEnvironment(f"{TOOLS}:{names}", str(path), **options)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    made = environment(tmp_path_factory.mktemp("shop"), time_limit=20.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    made = environment(tmp_path_factory.mktemp("scored"), "Scored", time_limit=1.0, lost_reward=-3.0)
    yield made
    made.close()


def test_public_methods_with_docstrings_are_the_tools(shop):
    assert [tool.name for tool in shop.tools] == ["add", "dice", "ship"]
    add = shop.tools[0]
    assert add.description == "Put something in the cart." and add.required == ("item",)
    assert add.parameters["count"] == {"type": "integer", "description": "how many."}
    assert shop.splits() == ("train",)


def test_an_episode(shop):
    episode = shop.start(shop.tasks("train")[0], seed=0)
    assert [(one.role, one.text) for one in episode.observe()] == [("user", "Buy tea. In stock: tea.")]
    calls = (ToolCall("add", {"item": "tea"}), ToolCall("add", {"item": "tea", "count": 2}), ToolCall("ad", {}))
    episode.act(answer(*calls))
    assert [one.text for one in episode.observe()] == [
        '["tea"]',
        "Error: LookupError: not enough tea",
        "Error: there is no tool 'ad'. The tools are: add, dice, ship.",
    ]
    assert not episode.done
    episode.act(answer(text="Done."))
    assert episode.done and episode.counts == {"tool_error": 1, "unknown_tool": 1}
    assert episode.score() == EpisodeScore(0.5, {"environment": 0.5}, (0.0, 0.5), False)
    episode.close()


def test_the_prompt_may_be_messages_and_methods_that_are_no_tools_are_never_called(shop):
    episode = shop.start(shop.tasks("train")[1], seed=0)
    assert [(one.role, one.text) for one in episode.observe()] == [("system", "Be brief."), ("user", "Buy tea.")]
    for name in ("reset", "get_reward", "_private", "undocumented", "__init__"):
        episode.act(answer(ToolCall(name, {})))
        assert "there is no tool" in episode.observe()[0].text
    assert episode.counts == {"unknown_tool": 5}
    episode.close()


def test_neighbouring_async_calls_run_at_the_same_time_and_others_in_order(shop):
    episode = shop.start(shop.tasks("train")[0], seed=0)
    calls = [ToolCall("ship", {"to": city, "seconds": wait}) for city, wait in (("A", 0.4), ("B", 0.3), ("C", 0.2))]
    begin = time.monotonic()
    episode.act(answer(*calls, ToolCall("add", {"item": "tea"})))
    assert time.monotonic() - begin < 0.8
    assert [one.text for one in episode.observe()] == [
        "Shipped to A.",
        "Shipped to B.",
        "Shipped to C.",
        '["to C", "to B", "to A", "tea"]',
    ]
    episode.close()


def test_episodes_are_private_and_the_same_seed_gives_the_same_results(shop):
    task = shop.tasks("train")[0]
    episodes = [shop.start(task, seed) for seed in (1, 1, 2)]
    for episode in episodes:
        episode.observe()
        episode.act(answer(ToolCall("add", {"item": "tea"}), ToolCall("dice", {})))
    seen = [[one.text for one in episode.observe()] for episode in episodes]
    assert seen[0] == seen[1] != seen[2] and [one[0] for one in seen] == ['["tea"]'] * 3
    for episode in episodes:
        episode.close()


def test_many_threads_may_play(shop):
    task, seen = shop.tasks("train")[0], []

    def play(seed):
        episode = shop.start(task, seed)
        episode.observe()
        episode.act(answer(ToolCall("add", {"item": "tea"})))
        seen.append((episode.observe()[0].text, episode.score().total))
        episode.close()

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [('["tea"]', 0.5)] * 16


def test_get_reward_after_every_answer(tmp_path):
    made = environment(tmp_path, turn_rewards=True, success_at=0.9)
    episode = made.start(made.tasks("train")[0], seed=0)
    for _ in range(2):
        episode.act(answer(ToolCall("add", {"item": "tea"})))
    episode.act(answer(text="Done."))
    assert episode.score() == EpisodeScore(1.0, {"environment": 1.0}, (0.5, 0.5, 0.0), True)
    episode.close()
    made.close()


@pytest.mark.parametrize(
    ("row", "total"),
    [({"reward": -7.25}, -7.25), ({"reward": True}, 1.0), ({"reward": None}, 0.0), ({"reward": "hang"}, -3.0)],
)
def test_rewards_of_any_size(scored, row, total):
    episode = scored.start(Task("t", {"prompt": "Go.", **row}), seed=0)
    episode.act(answer(text="Done."))
    assert episode.score().total == total and episode.score().turns == (total,)
    assert bool(episode.score().parts) == (row["reward"] is not None)
    assert episode.counts == ({"timeout": 1} if row["reward"] == "hang" else {})
    episode.close()


@pytest.mark.parametrize(
    ("reward", "words"),
    [("nan", "expected a finite number, found nan"), ("huge", "OverflowError"), ("five", "expected a number")],
)
def test_a_reward_that_is_none_is_a_fault(scored, reward, words):
    episode = scored.start(Task("t", {"prompt": "Go.", "reward": reward}), seed=0)
    episode.act(answer(text="Done."))
    with pytest.raises(EnvironmentFaultError, match=rf"Scored: get_reward\(\) failed: .*{words}.*Mend the class"):
        episode.score()
    episode.close()


@pytest.mark.parametrize(
    ("begin", "words"),
    [("raise", "ZeroDivisionError"), ("hang", "no end within 1 seconds"), ("exit", "SystemExit")],
)
def test_a_reset_that_fails_is_a_fault(scored, begin, words):
    with pytest.raises(EnvironmentFaultError, match=rf"Scored: reset\(\) failed for the task 't': .*{words}"):
        scored.start(Task("t", {"prompt": "Go.", "begin": begin}), seed=0)


def test_a_prompt_may_come_from_reset_which_is_given_what_it_takes(scored):
    episode = scored.start(Task("t", {"begin": "seed", "other": 1}), seed=11)
    assert [one.text for one in episode.observe()] == ["Seed 11."]
    episode.close()
    with pytest.raises(DataError, match=r"python\[t\]: field 'prompt'"):
        scored.start(Task("t", {}), seed=0)


def test_functions_have_no_state_and_go_on_after_a_limit(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Go."}')
    made = PythonEnvironment([f"{TOOLS}:add", f"{TOOLS}:spin"], str(tmp_path / "rows.jsonl"), time_limit=0.5)
    assert [tool.name for tool in made.tools] == ["add", "spin"]
    assert made.tools[1].parameters["kind"]["enum"] == ["fast", "for ever"]
    episode = made.start(made.tasks("train")[0], seed=0)
    calls = [
        ToolCall("add", {"a": 1, "b": 2}),
        ToolCall("spin", {"kind": "for ever"}),
        ToolCall("add", {"a": 1, "b": 1}),
    ]
    episode.act(answer(*calls))
    late = "Error: the call did not end within 0.5 seconds."
    assert [one.text for one in episode.observe()] == ["3", late, late] and not episode.done
    episode.act(answer(ToolCall("add", {"a": 2, "b": 2}), ToolCall("spin", {"kind": "slow"})))
    assert [one.text for one in episode.observe()] == [
        "4",
        "Error: wrong arguments for spin: kind: 'slow' is not one of ['fast', 'for ever'].",
    ]
    episode.act(answer(text="Four."))
    assert episode.done and episode.score() == EpisodeScore(0.0, {}, (0.0, 0.0, 0.0), False)
    assert episode.counts == {"timeout": 2, "wrong_arguments": 1}
    episode.close()
    made.close()


def test_a_function_may_say_what_an_episode_of_functions_or_of_a_class_earned(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 2?", "sum": 3}')
    (tmp_path / "rewards.py").write_text(
        "def right(row, messages):\n"
        "    return None if messages[-1]['role'] == 'user' else float(messages[-1]['content'] == str(row['sum']))\n"
    )
    reward = f"{tmp_path / 'rewards.py'}:right"
    made = PythonEnvironment(f"{TOOLS}:add", str(tmp_path / "rows.jsonl"), reward=reward)
    assert made.parts == ("environment",)
    for said, earned in (("3", 1.0), ("4", 0.0)):
        episode = made.start(made.tasks("train")[0], seed=0)
        episode.act(answer(ToolCall("add", {"a": 1, "b": 2})))
        episode.act(answer(text=said))
        assert episode.score() == EpisodeScore(earned, {"environment": earned}, (0.0, earned), earned == 1.0)
        episode.close()
    made.close()
    classed = PythonEnvironment(f"{TOOLS}:Rewardless", str(tmp_path / "rows.jsonl"), reward=reward, lost_reward=-1.0)
    assert [tool.name for tool in classed.tools] == ["leave", "of_class", "of_nothing"]
    episode = classed.start(classed.tasks("train")[0], seed=0)
    episode.act(answer(ToolCall("of_class", {}), ToolCall("of_nothing", {"n": 2})))
    assert [one.text for one in episode.observe()] == ["Rewardless", "4"]
    episode.act(answer(text="3"))
    assert episode.score().total == 1.0
    episode.close()
    lost = classed.start(classed.tasks("train")[0], seed=0)
    lost.act(answer(ToolCall("leave", {})))
    assert lost.done and lost.score().total == -1.0
    lost.close()
    classed.close()
    with pytest.raises(
        ConfigError, match=r"^environment\.reward: .*Shop has a method get_reward\. Drop one of the two"
    ):
        PythonEnvironment(f"{TOOLS}:Shop", str(tmp_path / "rows.jsonl"), reward=reward)
    (tmp_path / "of_rows.py").write_text("def alone(row):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"^environment\.reward: expected a function of a row and .*: too many"):
        PythonEnvironment(f"{TOOLS}:add", str(tmp_path / "rows.jsonl"), reward=f"{tmp_path / 'of_rows.py'}:alone")


def test_reset_returns_text_or_nothing(tmp_path):
    made = environment(tmp_path, "ResetToMessages")
    with pytest.raises(
        EnvironmentFaultError, match=r"reset\(\) failed .*expected text for the prompt, or None, found \["
    ):
        made.start(made.tasks("train")[0], seed=0)
    made.close()


def test_calls_after_the_end_are_answered(tmp_path):
    made = environment(tmp_path)
    episode = made.start(made.tasks("train")[0], seed=0)
    made.close()
    episode.act(answer(ToolCall("add", {"item": "tea"})))
    assert episode.done and "ended" in episode.observe()[0].text and episode.counts == {"tool_died": 1}
    assert episode.score().total == 0.0
    episode.close()
    again = made.start(made.tasks("train")[0], seed=0)
    again.act(answer(ToolCall("add", {"item": "tea"})))
    assert [one.text for one in again.observe()] == ['["tea"]']
    again.close()
    made.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{TOOLS}:Shopp", r"has no function 'Shopp'. Did you mean Shop\?"),
        (f"{TOOLS}:NoReset", r"has no method reset"),
        (
            f"{TOOLS}:Untyped",
            r"'look' cannot be offered as a tool \(Argument where is missing a type hint.*line under Args:",
        ),
        (f"{TOOLS}:Shop,add", "expected one class or functions"),
        (f"{TOOLS}:add, Shop", "expected one class or functions"),
        ([], "expected one class or functions"),
        ("nowhere.py:Shop", "no file 'nowhere.py'"),
        ("nowhere.tools:Shop", "'nowhere.tools' cannot be imported"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path, path, words):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=rf"^environment\.path: .*{words}"):
        PythonEnvironment(path, str(tmp_path / "rows.jsonl"))


def test_a_module_and_a_file_that_fails_in_its_own_process(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Go."}')
    (tmp_path / "of_mine.py").write_text(
        "import sys\nif 'pytest' not in sys.modules: sys.exit('not here')\n" + "class E:\n    def reset(self): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = PythonEnvironment("of_mine:E", str(tmp_path / "rows.jsonl"))
    with pytest.raises(
        EnvironmentFaultError, match=r"of_mine:E cannot be imported in a process of its own: .*not here"
    ):
        made.start(made.tasks("train")[0], seed=0)
    made.close()


def test_limits_must_leave_room(tmp_path):
    with pytest.raises(ValueError, match=r"environment\.time_limit"):
        environment(tmp_path, time_limit=0)
    with pytest.raises(ValueError, match=r"environment\.memory_limit_mb"):
        environment(tmp_path, memory_limit_mb=1)
    with pytest.raises(ConfigError, match=r"environment\.result_limit: expected characters above 0, found 0"):
        environment(tmp_path, result_limit=0)


def test_variables_must_be_set(tmp_path):
    with pytest.raises(ConfigError, match=r"environment\.variables: 'NOT_SET_HERE' is not set"):
        environment(tmp_path, variables=["NOT_SET_HERE"])


def test_rows_of_parquet_with_values_that_are_no_json(tmp_path):
    import datetime

    table = pa.table({"prompt": ["Go."], "begin": [datetime.date(2026, 1, 2)], "reward": [1.5]})
    pq.write_table(table, tmp_path / "rows.parquet")
    made = PythonEnvironment(f"{TOOLS}:Scored", {"train": str(tmp_path / "rows.parquet")})
    episode = made.start(made.tasks("train")[0], seed=0)
    assert [one.text for one in episode.observe()] == ["Go.2026-01-02"]
    episode.close()
    made.close()


@pytest.mark.slow
def test_a_trainer_that_is_killed_leaves_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Go."}')
    program = (
        "import sys, time; from src.environments.python import PythonEnvironment\n"
        f"made = PythonEnvironment({f'{TOOLS}:Shop'!r}, {str(tmp_path / 'rows.jsonl')!r})\n"
        "episodes = [made.start(made.tasks('train')[0], 0) for _ in range(3)]\n"
        "print('ready', flush=True)\ntime.sleep(99)"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 4
        process.kill()
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert not alive and len(gone) == 4 and list(folder.iterdir()) == []


TYPES = """
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Optional, TypedDict


@dataclass
class Point:
    x: int


class Color(Enum):
    RED = "red"


class Size(TypedDict):
    width: int


Map = dict[str, float] | None


def fine(a: int, b: Optional[list[str]] = None, c: Literal["x", "y"] = "x", d: Map = None, e: Size = None):
    \"\"\"Fine.

    Args:
        a: a
        b: b
        c: c
        d: d
        e: e
    \"\"\"


def point(a: list[Point]):
    \"\"\"Not.

    Args:
        a: a
    \"\"\"


def color(a: Color = Color.RED):
    \"\"\"Not.

    Args:
        a: a
    \"\"\"


def place(a: int, /):
    \"\"\"Not.

    Args:
        a: a
    \"\"\"
"""


def test_types_that_json_does_not_have_are_refused(tmp_path):
    (tmp_path / "typed.py").write_text(TYPES)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}')
    rows = str(tmp_path / "rows.jsonl")
    made = PythonEnvironment(f"{tmp_path}/typed.py:fine", rows)
    assert made.parts == () and len(made.tools[0].parameters) == 5
    for name, words in (
        ("point", "parameter 'a' has the type Point"),
        ("color", "parameter 'a' has the type Color"),
        ("place", "parameter 'a' is positional only"),
    ):
        with pytest.raises(ConfigError, match=f"'{name}' cannot be offered as a tool .{words}"):
            PythonEnvironment(f"{tmp_path}/typed.py:{name}", rows)


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "tools.py").write_text('def add(a: int):\n    """Add.\n\n    Args:\n        a: a\n    """\n')
    made = PythonEnvironment(f"{tmp_path}/tools.py:add", str(tmp_path / "rows.jsonl"))
    with pytest.raises(
        ConfigError, match=r"environment\.rows\.train: expected at least one row, found none in '.*rows.jsonl'"
    ):
        made.tasks("train")
