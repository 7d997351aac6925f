"""Every row of docs/bad_inputs.md: the input is built, and what is said of it is what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.bad_inputs import BAD_INPUTS, Place

DOC = ROOT / "docs/bad_inputs.md"


def table() -> dict[str, str]:
    """Input -> message, of all tables of the document."""
    rows = [line.strip("| ").split(" | ") for line in DOC.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {row[0]: row[2].strip("`") for row in rows if row[0] != "input" and not row[0].startswith("---")}


def test_the_table_and_the_inputs_are_the_same() -> None:
    assert list(table()) == list(BAD_INPUTS)
    assert len(BAD_INPUTS) >= 40


CASES = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("W&B") else name for name in BAD_INPUTS]
"""W&B's client itself waits for ten seconds and more."""


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, tmp_path: Path, random_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    try:
        said = BAD_INPUTS[name](Place(folder, random_policy, monkeypatch))
    except (ValueError, OSError, RuntimeError) as error:
        said = str(error)
    pattern = ".*".join(map(re.escape, table()[name].split("…")))
    assert isinstance(said, str), f"'{name}' was taken"
    assert re.search(pattern, said, re.DOTALL), said
