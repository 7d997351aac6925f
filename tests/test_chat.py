"""Chat: the tiny policy talks and calls tools, a script drives it, nothing of what is written reaches the terminal."""

import json
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from src.config.checks import made
from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import execute
from src.environments.bfcl.environment import BfclEnvironment
from src.environments.bfcl.sandbox import Execution
from src.environments.conversation import Answer
from src.environments.generated.environment import GeneratedEnvironment
from src.environments.synthetic import synthetic_world
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.known import format_named
from src.protocol.formats.rest import call_line
from src.wings.chatting.conversation import Chat, Notice, Result
from src.wings.chatting.episode_world import EpisodeWorld
from src.wings.chatting.run import chat
from src.wings.chatting.terminal import Screen, blocks
from tests.conftest import ROOT, chat_config

WEATHER = ToolCall("get_weather", {"city": "Oslo", "day": "May 1"})
CALL = f"<think> Call. </think>\n<tool_call>\n{call_line(WEATHER)}\n</tool_call>"
ASKED = "Please check the weather in Sollilo on May 1."
"""A request that the untrained tiny policy answers with a call."""
DONE = "<think> Done. </think>\n<response> It is fine. </response>"


class Scripted:
    """A policy whose answers are given; notes the prompts."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts = list(texts), []

    def __call__(self, prompts) -> Iterator[tuple[int, Answer]]:
        self.prompts += prompts
        yield 0, Answer.of(self.texts.pop(0))


class _Renderer(PromptRenderer):
    def __init__(self) -> None:
        self.layout, self._special = "compact", []


def conversation(*texts: str, world=None, max_steps: int = 3) -> Chat:
    return Chat(Scripted(*texts), _Renderer(), world or synthetic_world(["weather"]), max_steps)


def talk(*lines: str, overrides: tuple[str, ...] = ()) -> tuple[Chat, str]:
    out = StringIO()
    console = Console(file=out, width=200, highlight=False)
    given = () if any(one.startswith("policy=") for one in overrides) else ("policy=tiny",)
    return chat(chat_config(Path(), *given, "device=cpu", *overrides), lines, console), out.getvalue()


def test_the_tiny_policy_calls_a_tool_and_reads_its_result():
    """What the tool returns is what the corpus' executor says."""
    held, shown = talk(f"{ASKED}\n", "/quit\n", "never said\n")
    calls = [call for message in held.history() for call in message.calls]
    assert calls and calls[0].name in {tool.name for tool in synthetic_world(["weather", "restaurants"]).tools}
    result = json.dumps(execute(calls[0], TRAINING_DOMAINS))
    assert next(m.text for m in held.history() if m.role == "observation") == result
    lines = shown.splitlines()
    assert f"you       {ASKED}" in lines and f"result    {result}" in lines
    assert any(line.startswith(f"call      {calls[0].name} {{") for line in lines)
    assert any(line.startswith("think     ") for line in lines) and "never said" not in shown


def test_commands_and_seeds():
    asked = "Could you book a table at Vorsol for 4 people at 19:30.\n"
    sampled = ("sampling.temperature=1.5", "seed=3")
    held, shown = talk("/tools\n", "\n", asked, "/reset\n", "/nonsense\n", overrides=sampled)
    assert held.history() == () and "tool      book_table(restaurant, guests, time)" in shown
    assert "A new conversation." in shown and shown.count("/reset: start anew") == 2
    said = [talk(asked, overrides=("sampling.temperature=1.5", f"seed={seed}"))[1] for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2]


def test_a_turn_goes_on_until_an_answer_without_calls():
    held = conversation(CALL, DONE)
    events = list(held.say("Weather?"))
    assert [type(event) for event in events] == [Answer, Result, Answer]
    assert json.loads(events[1].text) == execute(WEATHER, TRAINING_DOMAINS)
    assert [m.role for m in held.history()] == ["user", "assistant", "observation", "assistant"]
    assert held._generate.prompts[1].history[-1].text == events[1].text and held.history()[-1].text == "It is fine."


def test_errors_are_results_and_notices():
    missing = CALL.replace("get_weather", "rm_rf")
    events = list(conversation(missing, DONE).say("Go."))
    assert json.loads(events[1].text) == {"error": "no tool rm_rf"}
    assert list(conversation(CALL, CALL, max_steps=2).say("Go."))[-1] == Notice(
        "Stopped after 2 answers with calls (max_steps)."
    )
    assert "not well-formed" in list(conversation(CALL.replace("}}", "}")).say("Go."))[-1].text
    assert "neither a call" in list(conversation("Sure.").say("Go."))[-1].text
    with pytest.raises(ValueError, match="max_steps: expected at least 1, found 0"):
        conversation(max_steps=0)


def test_what_is_written_is_data():
    """Markup, escapes and look-alike tags of a policy and of a tool are shown, not obeyed."""
    out = StringIO()
    screen = Screen(Console(file=out, width=120, force_terminal=False), table=None)  # type: ignore[arg-type]
    hostile = "[bold red]x[/] \x1b]0;title\x07\x1b[2J \u202egpj.exe\r"
    screen.show(iter([Answer.of(f"<response> {hostile} </response>"), Result(WEATHER, hostile), Notice("n")]))
    shown = out.getvalue()
    assert shown.count("[bold red]x[/]") == 2 and r"\x1b]0;title\x07\x1b[2J \u202egpj.exe" in shown
    assert not any(c in shown for c in "\x1b\x07\u202e\r")
    assert blocks("no tags at all [red]")[0] == ("text", "no tags at all [red]")
    answer = (
        '<think>\nRain?\n</think>\n\nA moment.\n<tool_call>\n{"name": "sky", "arguments": {"at": "Oslo"}}\n</tool_call>'
    )
    assert blocks(answer, format_named("hermes")) == [
        ("think", "Rain?"),
        ("call", 'sky {"at": "Oslo"}'),
        ("response", "A moment."),
    ]


def test_an_answer_grows_on_a_terminal():
    """Each token is drawn when it is sampled; what stands in the end is what a script sees."""
    out = StringIO()
    drawn: list[str] = []
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    config = chat_config(Path(), "policy=tiny", "device=cpu")
    watch = Screen.watch

    def noted(self, tokens):
        watch(self, tokens)
        drawn.append(self._table.decode(self._tokens).decode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Screen, "watch", noted)
        held = chat(config, [ASKED], console, typed=True)
    assert len(drawn) > 10 and all(b.startswith(a) or len(b) < 12 for a, b in pairwise(drawn))
    (first, *_) = (call for message in held.history() for call in message.calls)
    assert any(text.rstrip().endswith("</tool_call>") or first.name in text for text in drawn)
    assert "\x1b[" in out.getvalue() and f"call      {first.name}" in out.getvalue()


CART = """
class Cart:
    def reset(self, wanted, **row):
        self.cart = []
        return f" The shop has {' and '.join(wanted)}."

    def add(self, item: str) -> list:
        \"\"\"Put something in the cart.

        Args:
            item: its name.
        \"\"\"
        self.cart.append(item)
        return self.cart

    def get_reward(self) -> float:
        raise RuntimeError("nobody keeps a score")
"""
ROWS = [
    {"prompt": "Put tea in the cart.", "wanted": ["tea"]},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Salt?"}], "wanted": ["salt"]},
]


@pytest.fixture
def cart(tmp_path: Path) -> tuple[str, ...]:
    """The overrides of an environment with a class."""
    (tmp_path / "cart.py").write_text(CART)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return "environment=python", f"environment.path={tmp_path}/cart.py:Cart", f"environment.rows={tmp_path}/rows.jsonl"


def test_calls_run_in_an_episode_of_an_environment(cart: tuple[str, ...]) -> None:
    """Its state stays between turns and is new after a reset; what cannot be run is answered as in training."""
    config = chat_config(Path(), "policy=tiny_native", *cart, "task.index=1")
    world = EpisodeWorld(made(config.environment, "environment"), config.task.split, config.task.index)
    assert world.hint == "Salt? The shop has salt."
    one, two = (ToolCall("add", {"item": item}) for item in ("tea", "salt"))
    calls = "<think> Call. </think>\n<tool_call>\n{}\n</tool_call>"
    broken = call_line(ToolCall("add", {"itme": "tea"}))
    texts = (calls.format(f"{call_line(one)}\n{call_line(two)}"), DONE, calls.format(broken), DONE, DONE)
    held = Chat(Scripted(*texts), _Renderer(), world, 3, world.opening)
    try:
        first = [event.text for event in held.say("Both.") if isinstance(event, Result)]
        second = [event.text for event in held.say("Again.") if isinstance(event, Result)]
        assert first == ['["tea"]', '["tea", "salt"]']
        assert [text.partition(" (")[0] for text in second] == [
            "Error: wrong arguments for add: there is no parameter 'itme'"
        ]
        prompts = held._generate.prompts
        assert prompts[0].history == (Message("system", "Be brief."), Message("user", "Both."))
        assert prompts[1].history[-2:] == tuple(Message("observation", text, name="add") for text in first)
        held.reset()
        list(held.say("Hello."))
        assert prompts[-1].history == (Message("system", "Be brief."), Message("user", "Hello."))
        assert world.run([one]) == ['["tea"]']
    finally:
        world.close()


def test_the_tiny_policy_talks_in_an_environment(cart: tuple[str, ...]) -> None:
    held, shown = talk("/tools\n", "Put tea in the cart.\n", "/reset\n", overrides=("policy=tiny_native", *cart))
    assert "with 1 tools" in shown and "tool      add(item)" in shown
    assert "For example: Put tea in the cart. The shop has tea." in shown
    assert "call      add {" in shown and "result    " in shown and "A new conversation." in shown
    assert held.history() == ()


def test_generated_worlds_tell_what_to_ask() -> None:
    _, shown = talk(overrides=("policy=tiny_native", "environment=generated", "task.split=val_unseen", "task.index=3"))
    environment = GeneratedEnvironment(seed=1)
    task = environment.tasks("val_unseen")[3]
    assert f"For example: {environment.scenario(task).turns[0].user}" in shown


def test_the_environment_is_closed_where_the_model_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(GeneratedEnvironment, "close", lambda self: closed.append(self))
    with pytest.raises(ConfigError, match=r"generation.context: expected at most the model's 1024, found 4096"):
        talk(overrides=("policy=tiny_native", "environment=generated", "generation.context=4096"))
    assert len(closed) == 1


def test_a_limit_that_ends_an_episode_is_a_result() -> None:
    """BFCL's episode observes nothing then; a conversation goes on."""
    environment = BfclEnvironment(["multi_turn_base"])
    world = EpisodeWorld(environment)
    try:
        environment._sandbox = world._episode._world._executor = Limited()
        assert world.run([WEATHER, WEATHER]) == 2 * [
            "Error: the calls went beyond a limit of the tools, which ended the episode. They have no result."
        ]
    finally:
        world.close()


class Limited:
    """A sandbox in which every step takes too long."""

    def execute(self, entry: object, steps: object) -> Execution:
        return Execution((), "time_limit")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["environment=generated", "task.split=vall"], r"task.split: generated has no split 'vall'. Did you mean val"),
        (["environment=generated", "task.index=200"], r"task.index: expected 0 to 199, the tasks of the split 'val'"),
        (["environment=python"], r"no value for environment.path, environment.rows"),
        (["tools.domains=[wether]"], r"tools.domains: no domain is called 'wether'. Did you mean weather\?"),
        (["tools.domains=[]"], r"tools.domains: expected at least one of weather, .* found none"),
        (["tools=bfcl", "tools.classes=[GorillaFiles]"], r"no class is called 'GorillaFiles'. Did you mean G"),
        (["tools=bfcl", "tools.classes=[]"], r"tools.classes: expected at least one of GorillaFileSystem, Math"),
        (["model=nowhere"], r"model, policy: expected exactly one of them, found both"),
        (["+max_stpes=3"], r"max_stpes: no such key in configs/chat.yaml. Did you mean max_steps\?"),
    ],
)
def test_what_cannot_be_talked_to_is_said(overrides, message):
    with pytest.raises(Exception, match=message) as raised:
        talk(overrides=tuple(overrides))
    assert isinstance(raised.value, ConfigError) or isinstance(raised.value.__cause__, ConfigError)


@pytest.mark.slow
def test_a_script_on_stdin():
    script = f"{ASKED}\n/quit\n"
    command = [sys.executable, "src/chat.py", "policy=tiny", "device=cpu"]
    done = subprocess.run(command, input=script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\ncall      " in done.stdout and "\x1b" not in done.stdout
