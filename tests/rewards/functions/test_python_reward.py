"""Functions of the user: what they are called with, how what they return is added up, and what is said of faults."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from src.errors import ConfigError
from src.protocol.dialogue import ChatPrompt, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.formats.rest import parse
from src.protocol.regions import DecodedCompletion
from src.rewards.functions.python_reward import Batch, PythonReward, score_all
from src.rewards.functions.user_function import RewardError
from src.rewards.tool_call import RewardParts, ToolCallReward
from tests.conftest import train_config

SKY = ToolSpec.of("sky", "The sky.", {"city": {"type": "string"}})
ASKED = Message("user", "Oslo?")
CALL = ToolCall("sky", {"city": "Oslo"}, "c1")
FIRST = TurnExample((SKY,), (ASKED,), Message("assistant", calls=(CALL,)), "doc", "one", columns={"level": 3})
LATER = TurnExample(
    (SKY,),
    (
        Message("system", "Be brief."),
        ASKED,
        Message("assistant", calls=(CALL,)),
        Message("observation", "clear", name="sky", call_id="c1"),
    ),
    Message("assistant", "It is clear."),
    "doc",
    "two",
    columns={"answer": "clear"},
)
RIGHT = '<think> Look. </think>\n<tool_call>\n{"name": "sky", "parameters": {"city": "Oslo"}}\n</tool_call>'
SAID = "<think> Seen. </think>\n<response> It is clear. </response>"


def batch(*pairs: tuple[TurnExample, str]) -> Batch:
    responses = [DecodedCompletion(text, parse(text), torch.zeros(2, dtype=torch.int64)) for _, text in pairs]
    ids = [torch.arange(index, index + 2) for index in range(len(pairs))]
    return Batch([example for example, _ in pairs], ids, responses, rollout_step=5, progress=0.25)


BATCH = batch((FIRST, RIGHT), (FIRST, SAID), (LATER, SAID))


def in_file(folder: Path, **functions: object) -> dict[str, str]:
    """Entries of `reward.functions` for objects that a module of this folder, imported already, has."""
    module = ModuleType(f"rewards_of_{folder.name}".replace("-", "_"))
    vars(module).update(functions)
    sys.modules[module.__name__] = module
    return {name: f"{module.__name__}.{name}" for name in functions}


def given(values: object) -> Callable[..., Any]:
    return lambda completions: values


def test_the_total_is_the_weighted_sum_of_what_did_not_abstain(tmp_path: Path) -> None:
    """By hand. Rules at constant ranges: right is 1 + 3 = 4; an answer in place of the call 0 - 3; the answer 4."""
    paths = in_file(tmp_path, one=given([1.0, None, 2]), two=given([10.0, 20.0, None]))
    functions = {"one": {"path": paths["one"], "weight": 0.5}, "two": paths["two"], "off": None}
    reward = PythonReward(functions, ToolCallReward(scaling="constant"), rules_weight=2.0)
    rewards = score_all(reward, BATCH)
    assert [found.total for found in rewards] == [2 * 4 + 0.5 + 10, 2 * -3 + 20, 2 * 4 + 1]
    logged = [found.parts.metrics() for found in rewards]
    assert [
        {key: one.get(key) for key in ("rules", "one", "two", "one/abstained", "two/abstained")} for one in logged
    ] == [
        {"rules": 4.0, "one": 1.0, "two": 10.0, "one/abstained": 0.0, "two/abstained": 0.0},
        {"rules": -3.0, "one": None, "two": 20.0, "one/abstained": 1.0, "two/abstained": 0.0},
        {"rules": 4.0, "one": 2.0, "two": None, "one/abstained": 0.0, "two/abstained": 1.0},
    ]
    assert {key for one in logged for key in one} - set(reward.names) == set(RewardParts(0, 0, 0, 0, 0, 0).metrics())
    assert [one["exact_match"] for one in logged] == [1.0, 0.0, 1.0]
    assert reward.full_marks
    assert reward.bounds(0) == (-6.0, 8.0)


def test_without_rules_an_unscored_completion_is_0_and_counted(tmp_path: Path) -> None:
    reward = PythonReward(in_file(tmp_path, one=given([None, 3.0, None]), two=given([None, None, -1.0])))
    rewards = score_all(reward, BATCH)
    assert [found.total for found in rewards] == [0.0, 3.0, -1.0]
    assert [found.parts.metrics()["abstained"] for found in rewards] == [1.0, 0.0, 0.0]
    assert [found.parts.exact_match for found in rewards] == [1.0, 0.0, 1.0]  # measured all the same
    assert "rules" not in reward.names
    assert not reward.full_marks
    assert reward.bounds(0) == reward.bounds(150) == (0.0, 0.0)


def test_functions_get_what_trl_gives_them(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def judge(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0] * 3

    def few(completions: Any, level: Any, *, strict: bool = True) -> list[float]:
        assert level == [3, 3, None]
        assert strict
        return [1.0] * len(completions)

    score_all(PythonReward(in_file(tmp_path, judge=judge, few=few)), BATCH)
    call = {"type": "function", "function": {"name": "sky", "arguments": {"city": "Oslo"}}}
    told = {"role": "assistant", "content": "", "tool_calls": [call | {"id": "c1"}]}
    asked = {"role": "user", "content": "Oslo?"}
    later = [
        {"role": "system", "content": "Be brief."},
        asked,
        told,
        {"role": "tool", "content": "clear", "name": "sky", "tool_call_id": "c1"},
    ]
    assert seen == {
        "prompts": [[asked], [asked], later],
        "completions": [
            [{"role": "assistant", "content": RIGHT, "tool_calls": [call]}],
            [{"role": "assistant", "content": SAID}],
            [{"role": "assistant", "content": SAID}],
        ],
        "completion_ids": [[0, 1], [1, 2], [2, 3]],
        "level": [3, 3, None],
        "answer": [None, None, "clear"],
        "tools": [[SKY.json]] * 3,
        "target": [[told], [told], [{"role": "assistant", "content": "It is clear."}]],
        "rollout_step": 5,
        "progress": 0.25,
    }


def test_a_ready_prompt_is_two_messages_and_a_column_replaces_what_is_called_like_it(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(prompts: Any, target: Any) -> list[None]:
        seen.update(prompts=prompts, target=target)
        return [None]

    example = TurnExample((), (), FIRST.target, "doc", "0", ChatPrompt("Tools.", "Hi."), columns={"target": "own"})
    score_all(PythonReward(in_file(tmp_path, look=look)), batch((example, SAID)))
    prompt = [{"role": "system", "content": "Tools."}, {"role": "user", "content": "Hi."}]
    assert seen == {"prompts": [prompt], "target": ["own"]}


def test_a_column_that_no_example_has_is_none_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def judge(completions: Any, level: Any, lvel: Any, other: Any = 7, **rest: Any) -> list[float]:
        assert (lvel, other, level) == ([None] * 3, 7, [3, 3, None])
        assert "prompts" in rest
        return [1.0] * 3

    reward = PythonReward(in_file(tmp_path, judge=judge))
    with caplog.at_level(logging.WARNING):
        score_all(reward, BATCH)
        score_all(reward, BATCH)
    (record,) = caplog.records
    assert "reward.functions.judge: no example of this batch has the column 'lvel'" in record.getMessage()
    assert "level" in record.getMessage()


def test_what_a_function_changes_the_next_one_does_not_see(tmp_path: Path) -> None:
    def breaking(prompts: Any, completions: Any, completion_ids: Any, level: Any) -> list[float]:
        for given_to_me in (prompts, completions, completion_ids, level):
            (given_to_me[0] if isinstance(given_to_me[0], list) else given_to_me).clear()
        return [0.0] * 3

    def counting(prompts: Any, completions: Any, completion_ids: Any, level: Any) -> list[float]:
        return [float(len(prompts[0]) + len(completions[0]) + len(completion_ids[0]) + len(level))] * 3

    rewards = score_all(PythonReward(in_file(tmp_path, one=breaking, two=counting)), BATCH)
    assert [found.total for found in rewards] == [1.0 + 1 + 2 + 3] * 3


def test_a_column_that_an_argument_hides_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hidden = TurnExample((SKY,), (ASKED,), Message("assistant", "Hm."), "doc", "three", columns={"progress": "late"})
    reward = PythonReward(in_file(tmp_path, one=lambda completions, progress: [progress] * len(completions)))
    for _ in range(2):
        assert [found.total for found in score_all(reward, batch((hidden, SAID)))] == [0.25]
    said = "the records' column 'progress' is hidden by the argument of that name"
    assert [said in record.message for record in caplog.records] == [True]


def test_async_functions_wait_for_each_other_in_one_loop(tmp_path: Path) -> None:
    """Each waits for what the other says: one after the other they would wait forever."""
    first, second, loops = asyncio.Event(), asyncio.Event(), []

    async def ask(completions: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        first.set()
        await asyncio.wait_for(second.wait(), 30)
        return [1.0] * len(completions)

    class Answer:
        async def __call__(self, completions: Any) -> list[float]:
            await asyncio.wait_for(first.wait(), 30)
            second.set()
            return [2.0] * len(completions)

    def plain(completions: Any) -> list[float]:
        return asyncio.run(own())  # no loop runs meanwhile, so that a function may use one of its own

    async def own() -> list[float]:
        return [4.0] * 3

    reward = PythonReward(in_file(tmp_path, ask=ask, answer=Answer(), plain=plain))
    assert [found.total for found in score_all(reward, BATCH)] == [7.0] * 3
    assert [found.total for found in score_all(reward, BATCH)] == [7.0] * 3
    assert loops[0] is loops[1]  # clients that the user keeps go on working


@pytest.mark.parametrize(
    "values", [np.array([1, 2, 3], np.float32), torch.tensor([1.0, 2.0, 3.0]), (1, np.float32(2), 3.0), [True, 2, 3]]
)
def test_numbers_of_numpy_and_pytorch_are_fine(tmp_path: Path, values: object) -> None:
    rewards = score_all(PythonReward(in_file(tmp_path, one=given(values))), BATCH)
    assert [found.total for found in rewards] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.0], "expected a list of 3 rewards, one for each completion, found 2. Let rewards_of_"),
        (1.0, "expected a list of 3 rewards, one for each completion, found 1.0."),
        (None, "found None."),
        (
            ["1", 0, 0],
            "expected a finite number or None for each completion, found '1' for completion 0, of example 'doc/one'",
        ),
        ([0, 0, float("nan")], "found nan for completion 2, of example 'doc/two'"),
        (np.array([0, 0, np.inf]), "found inf for completion 2"),
    ],
)
def test_what_is_no_reward_is_refused(tmp_path: Path, values: object, said: str) -> None:
    with pytest.raises(RewardError, match=r"^reward\.functions\.one: ") as caught:
        score_all(PythonReward(in_file(tmp_path, one=given(values))), BATCH)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_a_function_raises_passes_with_its_name(tmp_path: Path, kind: str) -> None:
    def plain(completions: Any) -> list[float]:
        raise KeyError("mine")

    async def waiting(completions: Any) -> list[float]:
        raise KeyError("mine")

    path = in_file(tmp_path, one=plain if kind == "plain" else waiting)
    with pytest.raises(KeyError, match="mine") as caught:
        score_all(PythonReward(path), BATCH)
    assert caught.value.__notes__ == [f"Raised by reward.functions.one ({path['one']})."]


def test_a_file_runs_once_and_finds_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour_of_rewards.py").write_text("BEST = 3.0\nRUNS = []\n")
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import neighbour_of_rewards\n"
        "neighbour_of_rewards.RUNS.append(1)\n"
        "@dataclass\n"
        "class Kept:\n"
        "    best: float\n"
        "def best(completions):\n"
        "    return [Kept(neighbour_of_rewards.BEST).best * len(neighbour_of_rewards.RUNS) for _ in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    for path in ("own.py:best", f"{tmp_path}/own.py:best"):
        rewards = score_all(PythonReward({"best": path}), BATCH)
        assert [found.total for found in rewards] == [3.0] * 3


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({}, "reward.functions: expected a function, found none"),
        ({"format": "own.py:f"}, "reward.functions.format: expected a name of letters"),
        ({"a/b": "own.py:f"}, "reward.functions.a/b: expected a name of letters"),
        ({"one": 3}, "reward.functions.one: expected FILE.py:NAME, package.module.NAME, or"),
        ({"one": {"path": "own.py:f", "wieght": 2}}, "reward.functions.one: expected FILE.py:NAME"),
        (
            {"one": {"path": "own.py:f", "weight": "2"}},
            "reward.functions.one: expected a finite number as weight, found '2'",
        ),
        ({"one": "brevity"}, "reward.functions.one: expected FILE.py:NAME, package.module.NAME, or"),
        ({"one": "own.py"}, "FILE.py:NAME, package.module.NAME, or {path: one of these, weight: 1.0}, found 'own.py'"),
        (
            {"one": "own.py:steps"},
            "own.py:steps takes 'trainer_state', which TRL's trainer gives",
        ),
        ({"one": "away.py:f"}, "reward.functions.one: no file 'away.py' in "),
        (
            {"one": "no_such.module.f"},
            "'no_such.module' cannot be imported (ModuleNotFoundError: No module named 'no_such')",
        ),
        ({"one": "broken.py:f"}, "'broken.py' cannot be imported (NameError: name 'oops' is not defined)"),
        ({"one": "own.py:brevty"}, "'own.py' has no function 'brevty'. Did you mean brevity?"),
        ({"one": "own.py:number"}, "'own.py' has no function 'number'. Known here: brevity, steps."),
    ],
)
def test_entries_that_are_none_are_refused(
    functions: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (
        "number = 3\ndef brevity(completions):\n    return [1.0] * len(completions)\nsteps = lambda trainer_state: 0\n"
    )
    (tmp_path / "own.py").write_text(own)
    (tmp_path / "broken.py").write_text("oops\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        PythonReward(functions)
    assert said in str(caught.value)


def test_rules_weight_is_a_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.rules_weight: expected a finite number, found nan"):
        PythonReward(in_file(tmp_path, one=given([])), rules_weight=float("nan"))


def test_other_rewards_are_asked_one_by_one_with_the_same_result() -> None:
    reward = ToolCallReward()
    rewards = score_all(reward, BATCH)
    for found, example, response in zip(rewards, BATCH.examples, BATCH.responses, strict=True):
        assert found == reward(response.text, response.parsed, example.target, rollout_step=5, progress=0.25)
    assert score_all(PythonReward(in_file(Path("no_batch"), one=given([]))), batch()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["reward.functions={brevity: FILE.py:brevity}"],
        ["+reward.functions.brevity=FILE.py:brevity", "reward.rules.scaling=constant"],
        ["reward.functions={brevity: {path: FILE.py:brevity, weight: 0.5}}", "reward.rules=null"],
    ],
)
def test_the_command_line_names_functions(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def brevity(completions):\n    return [1.0] * len(completions)\n")
    overrides = [one.replace("FILE.py", f"{tmp_path}/own.py") for one in overrides]
    config = train_config(Path(), "reward=python", *overrides)
    reward = instantiate(config.reward)
    assert "brevity" in reward.names
    assert reward.full_marks == (config.reward.rules is not None)
