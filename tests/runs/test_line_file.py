"""Files of lines go on where a checkpoint was."""

from pathlib import Path

import pytest

from src.runs.line_file import LineError, LineFile, parse_line, read_lines


def test_what_was_written_after_a_position_is_cut_off(tmp_path):
    lines = LineFile(tmp_path / "metrics.jsonl")
    assert lines.position() == 0
    lines.append([{"step": 0, "text": "é"}, {"step": 1}])
    position = lines.position()
    lines.append([{"step": 2}])
    with lines.path.open("a") as file:
        file.write('{"step": 3, "half a li')  # a kill
    lines.rewind(position)
    lines.append([{"step": 2}])
    assert lines.path.read_text(encoding="utf-8").splitlines() == [
        '{"step": 0, "text": "é"}',
        '{"step": 1}',
        '{"step": 2}',
    ]


def test_lines_that_are_lost_are_told(tmp_path, caplog):
    lines = LineFile(tmp_path / "metrics.jsonl")
    lines.append([{"step": 0}])
    lines.rewind(lines.position())
    assert caplog.text == ""
    lines.rewind(100)
    assert "expected 100 bytes as at the checkpoint, found 12" in caplog.text
    assert lines.path.read_text() == '{"step": 0}\n'


def test_lines_are_read_from_a_position_and_a_last_one_may_be_at_work(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2, "text": "\xe2\x80\xa8"}\n{"a": ')
    records, end = read_lines(path, ["a"], growing=True)
    assert records == [{"a": 1}, {"a": 2, "text": "\u2028"}] and end == path.read_bytes().rfind(b"\n") + 1
    assert read_lines(path, ["a"], start=end, growing=True) == ([], end)
    with pytest.raises(LineError, match=r"metrics\.jsonl, line 4: expected a JSON object with a, found"):
        read_lines(path, ["a"])


@pytest.mark.parametrize("line", [b"[1]", b"nonsense", b'{"a": 1}', b"[" * 100_000])
def test_a_line_that_is_no_record_is_named(line):
    with pytest.raises(LineError, match=r"x\.jsonl, line 7: expected a JSON object with a and b, found"):
        parse_line(line, Path("x.jsonl"), 7, ["a", "b"])
