"""No source file evaluates what it reads, or loads a pickle that could run code; found by reading the code."""

from __future__ import annotations

import ast
from functools import cache

from tests.conftest import ROOT

ALLOWED = {
    ("src/environments/bfcl/official.py", "eval"),  # in the worker process, of text that `bfcl.calls` rebuilt
    ("src/training/ranks.py", "pickle.loads"),  # of groups that another rank of the same run sent
}
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "dill.load", "joblib.load", "numpy.load", "np.load",
}  # fmt: skip
RESTRICTED = {"torch.load": "weights_only"}


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """(file, dotted name, call) of every call below src."""
    return [
        (str(path.relative_to(ROOT)), ast.unparse(node.func), node)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_evaluated() -> None:
    found = {(file, name) for file, name, _ in calls() if name in FORBIDDEN}
    assert found == ALLOWED


def test_pickles_are_read_with_weights_only() -> None:
    for file, name, call in calls():
        if name in RESTRICTED:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get(RESTRICTED[name]) == "True", f"{file}:{call.lineno}"


def test_shells_get_no_strings() -> None:
    for file, name, call in calls():
        if name.startswith("subprocess."):
            assert not any(keyword.arg == "shell" for keyword in call.keywords), f"{file}:{call.lineno}"


def test_code_of_models_runs_only_where_the_config_says_so() -> None:
    for file, _, call in calls():
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                assert not (isinstance(keyword.value, ast.Constant) and keyword.value.value), f"{file}:{call.lineno}"
