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

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import execute
from src.environments.conversation import Answer
from src.environments.synthetic import synthetic_world
from src.errors import ConfigError
from src.protocol.dialogue import ToolCall
from src.protocol.formats.known import format_named
from src.protocol.formats.rest import call_line
from src.wings.chatting.conversation import Chat, Notice, Result
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
    return chat(chat_config(Path(), "policy=tiny", "device=cpu", *overrides), lines, console), out.getvalue()


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tools.domains=[wether]"], r"tools.domains: no domain is called 'wether'. Did you mean weather\?"),
        (["tools.domains=[]"], r"tools.domains: expected at least one of weather, .* found none"),
        (["tools=bfcl", "tools.classes=[GorillaFiles]"], r"no class is called 'GorillaFiles'. Did you mean G"),
        (["tools=bfcl", "tools.classes=[]"], r"tools.classes: expected at least one of GorillaFileSystem, Math"),
        (
            ["tools=bfcl", "tools.case=multi_turn_base_999"],
            r"tools.case: expected one of multi_turn_base_0 to .*_199, found",
        ),
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
