"""The cache of converted GGUF files; tests/models/test_policy.py converts real weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.models.loading import files


def test_converts_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(source: str, gguf_file: str, folder: Path) -> None:
        calls.append(gguf_file)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(files, "_convert", convert)
    (tmp_path / "a.gguf").write_bytes(b"GGUF1234")
    first = files.converted_gguf(str(tmp_path), "a.gguf", cache=tmp_path / "cache")
    assert files.converted_gguf(str(tmp_path), "a.gguf", cache=tmp_path / "cache") == first
    assert calls == ["a.gguf"] and (first / "config.json").is_file()
    (tmp_path / "a.gguf").write_bytes(b"GGUF12345")
    assert files.converted_gguf(str(tmp_path), "a.gguf", cache=tmp_path / "cache") != first


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: str, gguf_file: str, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(files, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        files.converted_gguf(str(tmp_path), "a.gguf", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_process_that_was_faster_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: str, gguf_file: str, folder: Path) -> None:
        (folder / "config.json").write_text("slower")
        (winner := folder.parent / expected.name).mkdir()
        (winner / "config.json").write_text("faster")

    expected = tmp_path / "cache" / "a-00000000"
    monkeypatch.setattr(files.hashlib, "sha256", lambda _: type("Digest", (), {"hexdigest": lambda self: "0" * 64})())
    monkeypatch.setattr(files, "_convert", convert)
    assert files.converted_gguf(str(tmp_path), "a.gguf", cache=tmp_path / "cache") == expected
    assert (expected / "config.json").read_text() == "faster"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [expected.name]
