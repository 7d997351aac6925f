"""Files of lines go on where a checkpoint was."""

from src.runs.line_file import LineFile


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
