"""Records of an evaluation as result files of the official command line."""

import json

import pytest

from src.environments.bfcl.cases import load_cases
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.bfcl.tools.result_files import main, write_result_files
from src.wings.evaluation.evaluation_folder import RecordStore


def records(category: str) -> list[Record]:
    return [
        Record(case.id, category, True, details={"text": f"answer {number}"})
        for number, case in enumerate(load_cases(category))
    ]


def test_lines_are_in_the_packages_order_under_its_ids(tmp_path):
    made = records("live_relevance")
    (path,) = write_result_files(reversed(made), tmp_path / "rest")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "BFCL_v3_live_relevance_result.json"
    assert [line["result"] for line in lines] == [f"answer {number}" for number in range(18)]
    # the package has one id twice, of which the second is "…#2" in records
    assert [line["id"] for line in lines].count("live_relevance_3-3-0") == 2
    assert not any("#" in line["id"] for line in lines)


def test_multi_turn_texts_are_nested_by_turn(tmp_path):
    made = [
        Record(case.id, case.category, False, details={"turns": [[{"text": "a"}, {"text": "b"}], [{"text": "\ud800"}]]})
        for case in load_cases("multi_turn_base")
    ]
    (path,) = write_result_files(made, tmp_path)
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"id": "multi_turn_base_0", "result": [["a", "b"], ["\ud800"]]}


def test_a_part_of_a_category_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"live_relevance: expected 18 records, found none of live_relevance_.*subset"):
        write_result_files(records("live_relevance")[:-2], tmp_path)


def test_a_record_without_texts_is_refused(tmp_path):
    made = records("live_relevance")
    made[3] = Record(made[3].id, made[3].category, False, details={"omitted": "nested too deep for JSON"})
    with pytest.raises(ValueError, match=r"expected the model's text .* found \['omitted'\]"):
        write_result_files(made, tmp_path)


def test_the_command_reads_an_evaluations_file(tmp_path, monkeypatch, capsys):
    RecordStore(tmp_path / "bfcl.jsonl").rewrite(records("live_parallel"))
    monkeypatch.setattr("sys.argv", ["result_files", f"{tmp_path}/bfcl.jsonl", f"{tmp_path}/result/rest"])
    main()
    assert (tmp_path / "result/rest/BFCL_v3_live_parallel_result.json").is_file()
    monkeypatch.setattr("sys.argv", ["result_files", f"{tmp_path}/absent.jsonl", f"{tmp_path}/result/rest"])
    with pytest.raises(SystemExit):
        main()
    assert "no such file" in capsys.readouterr().err
