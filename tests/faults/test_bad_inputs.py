"""Every refused input of docs/troubleshooting.md: the input is built, and what is said of it is what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException

from tests.conftest import ROOT
from tests.faults.bad_inputs import BAD_INPUTS, Place

DOC = ROOT / "docs/troubleshooting.md"


def table() -> dict[str, str]:
    """Input -> message, of the document's tables whose first column is `input`."""
    found: dict[str, str] = {}
    of_inputs = False
    for line in DOC.read_text(encoding="utf-8").splitlines():
        cells = line.strip("| ").split(" | ")
        if line[:1] != "|" or cells[0] == "input":
            of_inputs = line[:1] == "|"
        elif of_inputs and not cells[0].startswith("---"):
            found[cells[0]] = cells[2].strip("`")
    return found


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
        assert isinstance(error, CompactHydraException | KeyboardInterrupt), f"{type(error)} is told with a traceback"
    pattern = ".*".join(map(re.escape, table()[name].split("…")))
    assert isinstance(said, str), f"'{name}' was taken"
    assert re.search(pattern, said, re.DOTALL), said
