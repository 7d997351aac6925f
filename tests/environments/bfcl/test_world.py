"""Tools as prompts offer them, results as the policy reads them, and the world of a chat."""

import ast
import copy
import json
from collections.abc import Iterator

import pytest

from src.environments.bfcl.cases import CATEGORIES, data_folder, load_cases
from src.environments.bfcl.sandbox import Sandbox
from src.environments.bfcl.world import BfclWorld, hinted, observation, tool_specs
from src.protocol.dialogue import ToolCall


@pytest.mark.parametrize("result", ["text", "", "{'python': 'dict'}", "NaN", '{"x": Infinity}', "[" * 100_000])
def test_results_that_are_no_json_stand_as_strings(result):
    assert json.loads(observation([ToolCall("a", {})], [result])) == [{"name": "a", "results": result}]


def official_hints():
    """The package's own function, taken from its source: its module cannot be imported without tree-sitter."""
    path = data_folder().parent / "model_handler" / "utils.py"
    wanted = ("_get_language_specific_hint", "func_doc_language_specific_pre_processing")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    namespace = {"json": json}
    exec(compile(tree, str(path), "exec"), namespace)
    return namespace[wanted[1]]


@pytest.mark.parametrize("category", CATEGORIES)
def test_language_hints_are_the_packages(category):
    official = official_hints()
    for case in load_cases(category):
        before = copy.deepcopy(case.functions)
        assert hinted(case.functions, category) == official(copy.deepcopy(before), category)
        assert case.functions == before  # the checkers need them as they are


def test_java_parameters_are_source_literals():
    case = next(case for case in load_cases("java") if case.id == "java_22")
    (tool,) = tool_specs(case)
    assert tool.description.endswith(" Note that the provided function is in Java 8 SDK syntax.")
    assert tool.parameters["ids"]["type"] == "string" and "items" not in tool.parameters["ids"]
    assert tool.parameters["ids"]["description"].endswith(
        " This is Java ArrayList type parameter in string representation. The list elements are of type long; they are "
        "not in string representation."
    )


@pytest.fixture(scope="module")
def files() -> Iterator[BfclWorld]:
    world = BfclWorld(["GorillaFileSystem"], Sandbox())
    yield world
    world.close()


def test_bfcl_backends_keep_their_state_until_a_reset(files):
    files.reset()
    before = files.run([ToolCall("ls", {})])
    assert "mkdir" in {tool.name for tool in files.tools} and files.hint
    made, listed = files.run([ToolCall("mkdir", {"dir_name": "made_here"}), ToolCall("ls", {})])
    assert "error" not in made.lower() and "made_here" in listed and "made_here" not in before[0]
    assert "made_here" in files.run([ToolCall("ls", {})])[0]
    (error,) = files.run([ToolCall("__import__", {"name": "os"})])
    assert error == "Error during execution: name '__import__' is not defined"
    assert json.loads(files.observations([ToolCall("ls", {})], before)[0].text)[0]["name"] == "ls"
    files.reset()
    assert files.run([ToolCall("ls", {})]) == before


def test_a_step_over_a_limit_did_not_happen():
    sandbox = Sandbox(time_limit=1.0)
    calculator = BfclWorld(["MathAPI"], sandbox)
    try:
        (slow,) = calculator.run([ToolCall("power", {"base": 7.1, "exponent": 10**9})])
        sandbox.time_limit = 60.0  # of the worker that takes the place of the one that was ended
        (fine,) = calculator.run([ToolCall("add", {"a": 1.0, "b": 2.0})])
        assert json.loads(fine)["result"] == 3.0 and slow
    finally:
        calculator.close()
