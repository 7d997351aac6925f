"""Kept results: there again at the next start, and gone when sources, packages or the file are not what they were."""

import json

from src.config import result_cache
from src.config.result_cache import ResultCache


def kept(file, **values):
    cache = ResultCache(file)
    for key, value in values.items():
        cache.put(key, value)
    cache.save()
    return ResultCache(file)


def test_results_are_there_at_the_next_start_and_add_up(tmp_path):
    file = tmp_path / "new/folder/results.json"
    assert kept(file, a=[1, 2]).get("a") == [1, 2]
    second = kept(file, b={"c": None})
    assert (second.get("a"), second.get("b"), second.get("d")) == ([1, 2], {"c": None}, None)
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]  # no partial file


def test_results_of_other_sources_are_forgotten(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    kept(file, a=1)
    monkeypatch.setattr(result_cache, "_made_with", lambda: "other sources")
    assert ResultCache(file).get("a") is None
    assert kept(file, b=2).get("b") == 2
    assert json.loads(file.read_text())["results"] == {"b": 2}


def test_a_changed_source_file_is_another_source(tmp_path, monkeypatch):
    monkeypatch.setattr(result_cache, "SOURCES", tmp_path)
    digests = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "module.py").write_text(text)
        result_cache._made_with.cache_clear()
        digests.append(result_cache._made_with())
    result_cache._made_with.cache_clear()
    assert digests[0] == digests[2] != digests[1]


def test_damaged_files_and_folders_that_cannot_be_written_cost_time_alone(tmp_path):
    file = tmp_path / "results.json"
    changed = json.loads(kept(file, a=1).file.read_text()) | {"results": {"a": 2}}  # what something else has written
    for content in (
        "",
        "{",
        "[]",
        "null",
        '{"made_with": 1}',
        '{"results": {"a": 1}}',
        "[" * 200_000,
        json.dumps(changed),
    ):
        file.write_text(content)
        assert ResultCache(file).get("a") is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert kept(blocked / "results.json", a=1).get("a") is None
    (tmp_path / "folder.json").mkdir()
    kept(tmp_path / "folder.json", a=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        "folder.json",
        "results.json",
    ]  # nothing partial
    assert ResultCache(None).get("a") is None
