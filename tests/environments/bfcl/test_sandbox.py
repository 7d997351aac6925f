"""The worker process: its answers, its limits, and that requests do not know of each other."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from src.environments.bfcl import sandbox as sandbox_module
from src.environments.bfcl.calls import call_string, within_bounds
from src.environments.bfcl.cases import load_cases
from src.environments.bfcl.sandbox import Execution, Sandbox, SandboxError, Verdict
from src.protocol.dialogue import ToolCall
from tests.conftest import ROOT
from tests.environments.bfcl.conftest import in_a_hurry
from tests.environments.bfcl.gold import gold_calls, gold_turns
from tests.environments.bfcl.outputs import ask_official

FOREVER = ToolCall("power", {"base": 7, "exponent": 10**8})
GIGABYTES = ToolCall("square_root", {"number": 2, "precision": 10**11})


@pytest.fixture(scope="module")
def cases():
    return {
        case.id: case
        for category in ("multi_turn_base", "multi_turn_miss_func", "multi_turn_long_context")
        for case in load_cases(category)
    }


@pytest.fixture(scope="module")
def files_and_math(cases):
    return cases["multi_turn_base_15"]


def steps_of(case):
    return [step for turn in gold_turns(case) for step in turn]


def test_results_step_by_step_are_official(cases, sandbox, tmp_path):
    chosen = [case for case in cases.values() if case.id.endswith(("_3", "_15", "_77", "_101", "_150"))]
    extra = [
        [ToolCall("echo", {"content": "first cd (x), then ls (y)\n'\"", "file_name": "n.txt"})],
        [ToolCall("cat", {"file_name": "n.txt"}), ToolCall("ls", {"b": None}), ToolCall("cd", {})],
    ]
    all_steps = [[*steps_of(case), *extra] for case in chosen]
    names = {"echo", "cat", "ls", "cd"}
    requests = [
        {
            "kind": "execute",
            "arguments": {
                "entry": case.entry,
                "steps": [[call_string(call, names | {call.name}) for call in step] for step in steps],
                "model_name": "rest",
            },
        }
        for case, steps in zip(chosen, all_steps, strict=True)
    ]
    for case, steps, expected in zip(chosen, all_steps, ask_official(requests, tmp_path), strict=True):
        found = [list(sandbox.execute(case.entry, steps[: index + 1]).results) for index in range(len(steps))]
        assert found == expected, case.id


def test_refused_calls_read_like_official_errors(files_and_math, sandbox, tmp_path):
    calls = [ToolCall("nothing", {"a": 1}), ToolCall("os.system", {}), ToolCall("ls", {"a b": 1}), ToolCall("ls", {})]
    (expected,) = ask_official(
        [
            {
                "kind": "execute",
                "arguments": {
                    "entry": files_and_math.entry,
                    "steps": [["nothing(a=1)", "osx.system()", "ls(if=1)", "ls()"]],
                    "model_name": "rest",
                },
            }
        ],
        tmp_path,
    )
    found = sandbox.execute(files_and_math.entry, [calls]).results
    assert [text.replace("'os'", "'osx'") for text in found] == expected[0]
    assert found[0] == "Error during execution: name 'nothing' is not defined"


def test_gold_turns_pass_and_changed_ones_do_not(cases, sandbox):
    for case in list(cases.values())[::40]:
        turns = gold_turns(case)
        assert sandbox.check_multi_turn(case.entry, case.answer, turns) == Verdict(True)
        last = max(index for index, turn in enumerate(turns) if turn)
        verdict = sandbox.check_multi_turn(case.entry, case.answer, [*turns[:last], [], *turns[last + 1 :]])
        assert (verdict.passed, verdict.error_type) == (False, "multi_turn:empty_turn_model_response")


def test_a_case_that_was_stopped_fails(files_and_math, sandbox):
    verdict = sandbox.check_multi_turn(files_and_math.entry, files_and_math.answer, gold_turns(files_and_math)[:-1])
    assert verdict.error_type == "multi_turn:force_terminated" and "ground truth" in verdict.error


@pytest.mark.parametrize(
    ("category", "calls", "expected"),
    [
        ("live_relevance", [ToolCall("any", {})], Verdict(True)),
        ("live_relevance", [], Verdict(False, "relevance_error:decoder_failed", "There is no call.")),
        ("irrelevance", [], Verdict(True)),
        (
            "live_irrelevance",
            [ToolCall("f", {})],
            Verdict(False, "irrelevance_error:decoder_success", "There is a call."),
        ),
    ],
)
def test_relevance_counts_calls(category, calls, expected):
    with Sandbox() as sandbox:
        assert sandbox.check_single_turn({}, category, None, calls) == expected


def test_what_the_checker_raises_on_is_wrong(sandbox):
    # list_dict_checker asks every item for its keys; the type check lets a list pass where the argument is optional
    function = {"name": "f", "parameters": {"properties": {"x": {"type": "array", "items": {"type": "dict"}}}}}
    function["parameters"]["required"] = []
    answer = [{"f": {"x": ["", [{"a": [1]}]]}}]
    right, wrong = ToolCall("f", {"x": [{"a": 1}]}), ToolCall("f", {"x": ["a"]})
    assert sandbox.check_single_turn({"function": [function]}, "simple", answer, [right]).passed
    verdict = sandbox.check_single_turn({"function": [function]}, "simple", answer, [wrong])
    assert verdict == Verdict(False, "checker_error", "AttributeError: 'str' object has no attribute 'items'")


def test_limits_end_a_request_and_no_other(files_and_math, sandbox):
    entry, gold = files_and_math.entry, gold_turns(files_and_math)
    before = sandbox.execute(entry, steps_of(files_and_math))
    assert before.results and before.error_type == ""
    for call, limit in ((FOREVER, "time_limit"), (GIGABYTES, "memory_limit")):
        hurry = in_a_hurry if call is FOREVER else nullcontext
        with hurry(sandbox):
            assert sandbox.execute(entry, [*steps_of(files_and_math), [call]]) == Execution((), limit)
        assert sandbox.execute(entry, steps_of(files_and_math)) == before
        with hurry(sandbox):
            verdict = sandbox.check_multi_turn(entry, files_and_math.answer, [[*gold[0], [call]], *gold[1:]])
        assert verdict == Verdict(False, limit)
        assert sandbox.check_multi_turn(entry, files_and_math.answer, gold).passed


def test_results_without_end_are_a_memory_limit(files_and_math):
    write = [ToolCall("echo", {"content": "x" * 90_000, "file_name": "a"})]
    read = [ToolCall("cat", {"file_name": "a"})] * 200  # 18 MB
    with Sandbox() as sandbox:  # with its usual time: a busy machine needs more than a second to write 18 MB
        assert sandbox.execute(files_and_math.entry, [write, read]) == Execution((), "memory_limit")


def test_a_worker_that_was_killed_is_replaced(files_and_math):
    with Sandbox() as sandbox:
        before = sandbox.execute(files_and_math.entry, steps_of(files_and_math))
        first = sandbox._worker._process.pid
        os.kill(first, signal.SIGKILL)
        assert sandbox.execute(files_and_math.entry, steps_of(files_and_math)) == before
        assert sandbox._worker._process.pid != first
        process = sandbox._worker._process
    assert process.poll() is not None  # closed with the sandbox
    assert sandbox.execute(files_and_math.entry, steps_of(files_and_math)) == before  # a closed one starts again
    sandbox.close()


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_its_parent(busy):
    """By the end of its input; or by its alarm, when it is inside of a computation that the parent can no more end."""
    code = f"""
import os, threading
from src.protocol.dialogue import ToolCall
from src.environments.bfcl.sandbox import Sandbox
sandbox = Sandbox(time_limit=1.0)
entry = {{"id": "multi_turn_base_0", "initial_config": {{}}, "involved_classes": ["MathAPI"]}}
sandbox.execute(entry, [[]])
print(sandbox._worker._process.pid, flush=True)
if {busy}:
    threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()
    sandbox.execute(entry, [[ToolCall("power", {FOREVER.parameters})]])
os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    worker = int(run.stdout)
    for _ in range(12_000):  # two minutes, on a busy machine
        try:
            state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # ended, and nobody waits for it in a container
            return
        time.sleep(0.01)
    pytest.fail("the worker outlives its parent")


def test_requests_leave_nothing_behind(files_and_math, sandbox):
    """A request gives what it gives in a fresh worker, after purchases and other entries too."""
    entry = {
        "id": "multi_turn_long_context_0",
        "initial_config": {"TravelAPI": {"access_token": "t", "token_expires_in": 9, "credit_card_list": {}}},
        "involved_classes": ["TravelAPI"],
    }
    cards = ToolCall("get_all_credit_cards", {})

    def look(sandbox):
        listed = sandbox.execute(entry, [[cards]])
        return listed, sandbox.execute(files_and_math.entry, [[ToolCall("ls", {}), ToolCall("pwd", {})]])

    with Sandbox() as fresh:
        before = look(fresh)
    listed = json.loads(before[0].results[0])["credit_card_list"]
    shared = next(card for card in listed if listed[card]["balance"] > 5000)  # an object that all entries share
    trip = {"travel_date": "2024-11-15", "travel_from": "SFO", "travel_to": "LAX", "travel_class": "economy"}
    buy = ToolCall("book_flight", {"access_token": "t", "card_id": shared, **trip, "travel_cost": 1000.0})

    bought, left = sandbox.execute(entry, [[buy, cards]]).results
    assert json.loads(bought)["booking_status"] is True
    assert json.loads(left)["credit_card_list"][shared]["balance"] == listed[shared]["balance"] - 1000
    free = ToolCall("book_flight", {**buy.parameters, "travel_cost": 0.0})  # leaves 5000.0 where there was 5000
    assert json.loads(sandbox.execute(entry, [[free]]).results[0])["booking_status"] is True
    sandbox.execute(files_and_math.entry, [[ToolCall("mkdir", {"dir_name": "new"})]])
    sandbox.check_multi_turn(files_and_math.entry, files_and_math.answer, gold_turns(files_and_math))
    assert look(sandbox) == before


def test_the_state_of_the_package_is_restored():
    """Inside of the worker's own modules: no instance, constant or precision stays, also after an error."""
    code = """
import decimal, json, sys
import mpmath
from src.environments.bfcl import official
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import long_context
from src.environments.bfcl.cases import load_cases

case = load_cases("multi_turn_long_context")[0]
request = {**case.entry, "involved_classes": ["MathAPI", "VehicleControlAPI"], "initial_config": {}}
weather = dict(long_context.LONG_WEATHER_EXTENSION)
names = set(vars(official.multi_turn_utils))
try:
    with official.fresh_state():
        calls = [["logarithm", {"value": 7, "base": 3, "precision": 40}],
                 ["square_root", {"number": 2, "precision": 40}],
                 ["get_outside_temperature_from_google", {}]]
        official.execute({**request, "steps": [calls]})
        assert set(vars(official.multi_turn_utils)) - names
        assert (mpmath.mp.dps, decimal.getcontext().prec) == (40, 40)
        assert long_context.LONG_WEATHER_EXTENSION != weather
        raise RuntimeError
except RuntimeError:
    pass
assert set(vars(official.multi_turn_utils)) == names
assert long_context.LONG_WEATHER_EXTENSION == weather
with official.fresh_state():
    assert (mpmath.mp.dps, decimal.getcontext().prec) == (15, 28)
assert not {"torch", "numpy", "transformers", "bfcl_eval.constants.eval_config"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_worker_sees_no_secret_and_prints_nothing(monkeypatch, capfd, files_and_math):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("BFCL_PROJECT_ROOT", "/nonexistent")
    case = next(case for case in load_cases("javascript") if case.functions[0]["parameters"]["properties"])
    with Sandbox() as sandbox:
        sandbox.check_single_turn(case.entry, "javascript", case.answer, gold_calls(case))
        assert "secret" not in Path(f"/proc/{sandbox._worker._process.pid}/environ").read_text()
    assert capfd.readouterr() == ("", "")


def test_the_parent_needs_neither_checkers_nor_torch():
    code = """
import sys
from src.environments.bfcl.sandbox import Sandbox
with Sandbox() as sandbox:
    assert sandbox.check_single_turn({"function": []}, "parallel", [], []).passed
assert not {"torch", "numpy", "transformers", "bfcl_eval"} & {name.split(".")[0] for name in sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_string_stays_a_string(files_and_math, sandbox):
    """The official executor edits `method(` inside of strings as well: an instance's name is added, spaces go."""
    rng = random.Random(0)
    pieces = ["ls(", "cd (", "sort  (", "pwd", ")", "'", '"', "{", "#", "é", "\\", "\\N", "\n", "\t", "\x00", "\x0e"]
    pieces += ["\u3000(", "\u2028"]
    contents = ["".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(500)]
    calls = [ToolCall("echo", {"content": content}) for content in contents]
    results = sandbox.execute(files_and_math.entry, [calls]).results
    instance = f"rest_{files_and_math.id}_gorillafilesystem_instance."
    for content, result in zip(contents, results, strict=True):
        written = json.loads(result)["terminal_output"]
        assert written.replace(instance, "").replace(" ", "") == content.replace(" ", "")
    assert any(instance in result for result in results)


def test_mistakes_of_ours_are_errors(files_and_math):
    with Sandbox() as sandbox:
        with pytest.raises(SandboxError, match=r"(?s)execute.*KeyError: 'NoSuchAPI'"):
            sandbox.execute({**files_and_math.entry, "involved_classes": ["NoSuchAPI"]}, [[ToolCall("ls", {})]])
        assert sandbox.execute(files_and_math.entry, [[ToolCall("pwd", {})]]).results  # and it goes on
    with pytest.raises(ValueError, match=r"tools\.sandbox\.time_limit: expected seconds above 0, found 0"):
        Sandbox(time_limit=0)
    with pytest.raises(ValueError, match=r"tools\.sandbox\.memory_limit_mb"):
        Sandbox(memory_limit_mb=8)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(sandbox_module, "_ROOT", tmp_path)  # where there is no src
    with Sandbox() as sandbox, pytest.raises(SandboxError, match="does not start"):
        sandbox.check_single_turn({"function": []}, "parallel", [], [])
    assert "src.environments" in capfd.readouterr().err


def test_bounds_of_a_call():
    assert within_bounds(ToolCall("f", {"x": "y" * 100_000})) is False  # the key counts too
    assert within_bounds(ToolCall("f", {"x": "y" * 99_000}))
    assert within_bounds(ToolCall("f", {"x": [0] * 9_000}))
    assert not within_bounds(ToolCall("f", {"x": [0] * 10_000}))
    assert not within_bounds(ToolCall("f" * 257, {}))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert not within_bounds(ToolCall("f", {"x": deep}))
    while deep:
        deep = deep.pop()  # one level after the other: freeing it at once would recurse


@pytest.mark.parametrize(
    "parameters", [{"lambda": 1}, {"a b": 1}, {"": 1}, {"a": float("inf")}, {"a": [float("nan")]}, {"a": {1, 2}}]
)
def test_what_is_no_literal_gets_no_source(parameters):
    assert call_string(ToolCall("f", parameters), {"f"}) is None
