"""The examples in docstrings are true."""

import doctest
import importlib

from tests.conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_examples():
    """What each failed example expected and got is in the captured output."""
    results = {name: doctest.testmod(importlib.import_module(name)) for name in MODULES}
    assert len(results) >= 30
    assert {name: result for name, result in results.items() if result.failed or not result.attempted} == {}
