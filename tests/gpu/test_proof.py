"""The proof goes on whatever its sections do, kills what outlasts its deadline, and keeps what they have said."""

import json
import time
from pathlib import Path

import pytest

from tests.gpu import proof
from tests.gpu.proof import DEADLINES, Outcome, main, report, run_section, said_last


def outcome(name: str, folder: Path, deadline: float = 60.0) -> Outcome:
    return run_section(name, [], folder, folder, deadline, "tests.gpu.fake_sections")


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("fine", "ok", ""),
        ("missed", "failed", "a case: a number 2"),
        ("broken", "failed", "ended with code 1: ValueError: 3 is odd"),
        ("skipped", "skipped", "no reason to"),
    ],
)
def test_a_section_ends_as_it_says(name: str, status: str, reason: str, tmp_path: Path) -> None:
    found = outcome(name, tmp_path)
    assert (found.status, found.reason) == (status, reason)
    assert found.notes == ["begun"] and [result.value for result in found.results] == [2.0 if name == "missed" else 1.0]


def test_a_section_is_killed_at_its_deadline_with_all_that_it_started(tmp_path: Path) -> None:
    found = outcome("endless", tmp_path, deadline=3.0)
    assert (found.status, found.reason) == ("timeout", "killed after 3 s")
    assert found.notes == ["begun"] and len(found.results) == 1
    child = Path("/proc") / (tmp_path / "child").read_text()
    for _ in range(100):
        if not child.exists() or "State:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the section's child lives on")


def test_every_section_reports_whatever_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(name: str, *_: object) -> Outcome:
        return Outcome(name, "failed" if name == "update" else "ok", seconds=1.0, deadline=2.0)

    monkeypatch.setattr(proof, "run_section", run)
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 1
    lines = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    assert [line["section"] for line in lines] == list(DEADLINES)
    assert "| update" in (tmp_path / "proof.md").read_text()
    assert main(["--device", "cpu", "--only", "machine", "--out", str(tmp_path)]) == 0
    assert main(["--device", "cpu", "--only", "machine", "--minutes", "-1", "--out", str(tmp_path)]) == 1  # nothing ran
    assert json.loads((tmp_path / "proof.jsonl").read_text())["status"] == "skipped"
    with pytest.raises(SystemExit, match="2"):  # argparse's, with a line on --out
        main(["--device", "cpu", "--only", "machine", "--out", str(tmp_path / "proof.md")])


def test_the_table_has_one_row_for_each_section() -> None:
    text = report([Outcome("machine", notes=["a note"]), Outcome("update", "failed", "a | b")])
    assert "- a note" in text and "a ¦ b" in text and text.count("## ") == 2


def test_the_reason_is_the_last_error_of_a_log() -> None:
    assert said_last("Traceback:\nValueError: no\nmore\n") == "ValueError: no"
    assert said_last("Killed\n") == "Killed" and said_last("") == ""


def test_every_section_can_be_imported() -> None:
    import importlib

    for name in DEADLINES:
        assert callable(importlib.import_module(f"tests.gpu.sections.{name}").prove)
