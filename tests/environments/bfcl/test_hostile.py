"""Whatever a model writes: no file changes, no code runs, it ends within the limit, and it does not pass."""

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.environments.bfcl.cases import load_cases
from src.protocol.dialogue import ToolCall
from src.protocol.formats.rest import parse
from src.wings.evaluation.bfcl.decoding import decode_calls
from tests.environments.bfcl.conftest import in_a_hurry
from tests.environments.bfcl.gold import gold_calls, gold_turns
from tests.environments.bfcl.hostile_calls import hostile

FILES_AND_MATH = "multi_turn_base_15"  # has GorillaFileSystem and MathAPI


LABELS = list(hostile(Path("canary")))
ENDLESS = ("huge precision", "huge power")


def test_there_are_a_hundred():
    assert len(LABELS) >= 100


@pytest.fixture(scope="module")
def case():
    return next(case for case in load_cases("multi_turn_base") if case.id == FILES_AND_MATH)


@pytest.fixture(scope="module")
def cage(tmp_path_factory):
    return tmp_path_factory.mktemp("cage")


@pytest.fixture(scope="module")
def texts(cage):
    """Label -> lines of calls, which try to harm the canary."""
    return hostile(cage / "canary")


@pytest.fixture
def canary(cage):
    """A file that must stay as it is, the only one in its folder; and nothing of this process changes."""
    path = cage / "canary"
    path.write_text("sings")

    def world() -> Any:
        folders = [sorted(os.listdir(folder)) for folder in (cage, Path.cwd(), "/")]
        variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        modules = [name for name in sys.modules if name.startswith("bfcl_eval")]
        return path.read_text(), folders, variables, modules, list(sys.path), os.getcwd()

    before = world()
    yield path
    assert world() == before


@pytest.mark.parametrize("label", LABELS)
def test_multi_turn(label, texts, case, sandbox, canary):
    """As the published decoder reads it, and as the strict one does where that is something else."""
    text = f"<think> Ha. </think>\n<tool_call>\n{texts[label]}\n</tool_call>"
    published, strict = list(decode_calls(text)), list(parse(text).calls or ())
    for calls in [published] if published == strict else [published, strict]:
        with in_a_hurry(sandbox) if label in ENDLESS else nullcontext():
            execution = sandbox.execute(case.entry, [calls])
            verdict = sandbox.check_multi_turn(case.entry, case.answer, [[calls] for _ in case.answer])
        assert len(execution.results) == (0 if execution.error_type else len(calls))
        assert all(result.encode() is not None for result in execution.results)  # well-formed: a tokenizer takes it
        assert not verdict.passed
        if label in ENDLESS:
            assert execution.error_type == verdict.error_type == "time_limit"
        if label == "huge memory":
            assert execution.error_type == verdict.error_type == "memory_limit"


def test_refused_calls_count_as_officially(texts, case, sandbox, canary):
    """As an addition they cost nothing: evaluating them is an error that changes nothing. Alone they are no answer."""
    turns = gold_turns(case)
    for lines in texts.values():
        calls = decode_calls(f"<tool_call>\n{lines}\n</tool_call>")
        refused = [call for call in calls if not call.name.isidentifier() or call.name.startswith("_")]
        assert sandbox.check_multi_turn(case.entry, case.answer, [[refused, *turns[0]], *turns[1:]]).passed
        assert not sandbox.check_multi_turn(case.entry, case.answer, [[refused], *turns[1:]]).passed


@pytest.mark.parametrize("category", ["simple", "java", "javascript", "parallel_multiple", "live_multiple"])
def test_single_turn(category, texts, sandbox, canary):
    case = load_cases(category)[3]
    gold = gold_calls(case)
    assert sandbox.check_single_turn(case.entry, category, case.answer, gold).passed
    for lines in texts.values():
        calls = decode_calls(f"<tool_call>\n{lines}\n</tool_call>")
        assert not sandbox.check_single_turn(case.entry, category, case.answer, calls).passed
        for call in calls[:3]:  # its arguments in place of a right one
            parameters = {key: next(iter(call.parameters.values()), None) for key in gold[0].parameters}
            hostile_calls = [replace(gold[0], parameters=parameters), *gold[1:]]
            assert not sandbox.check_single_turn(case.entry, category, case.answer, hostile_calls).passed


@pytest.mark.parametrize(
    ("category", "kind", "literal"),
    [
        ("java", "HashMap", "new HashMap<" * 8000),
        ("java", "ArrayList", "new ArrayList<>() {{" + " " * 40_000),
        ("java", "Array", "new int[]{" * 8000),
        ("javascript", "array", "[[" + "],[" * 20_000),
        ("javascript", "dict", "{" + "a: b," * 15_000 + "}"),
    ],
)
def test_literals_that_exhaust_a_regular_expression(category, kind, literal, sandbox):
    case, key = next(
        (case, key)
        for case in load_cases(category)
        for key, doc in case.functions[0]["parameters"]["properties"].items()
        if doc["type"] == kind
    )
    (gold,) = gold_calls(case)
    with in_a_hurry(sandbox):
        verdict = sandbox.check_single_turn(
            case.entry, category, case.answer, [ToolCall(gold.name, {**gold.parameters, key: literal})]
        )
    assert not verdict.passed and len(verdict.error) < 500


def test_even_evaluated_code_reaches_nothing(case, sandbox, canary):
    """Gold calls are trusted and evaluated as they are. These get as far as the functions of `os`, and no further."""
    classes = "().__class__.__base__.__subclasses__()"
    functions = f"[c for c in {classes} if c.__name__ == '_wrap_close'][0].__init__.__globals__"
    echo = ToolCall("echo", {"content": "x", "file_name": "a"})

    def passes(expression: str) -> bool:
        code = f"echo(content={expression} or 'x', file_name='a')"
        return sandbox.check_multi_turn(case.entry, [[code]], [[[echo]]]).passed

    assert passes(f"{functions}['fspath']('x')")
    assert not passes(f"{functions}['system']('rm {canary}')")
    assert not passes(f"{functions}['remove']({str(canary)!r})")
    assert not passes(f"{functions}['mkdir']({str(canary.with_name('new'))!r})")
    assert not passes(f"{functions}['open']({str(canary)!r}, 2)")
    assert not passes(f"open({str(canary)!r}, 'w')")
    assert not passes("__import__('json')")


def test_nothing_is_left_of_all_this(case, sandbox):
    assert sandbox.check_multi_turn(case.entry, case.answer, gold_turns(case)).passed
