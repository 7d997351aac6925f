import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from src.environments.bfcl import cases
from src.environments.bfcl.cases import CATEGORIES, GROUPS, choose_categories, data_folder, load_cases
from src.errors import BenchmarkDataError
from src.wings.evaluation.bfcl.bfcl import Bfcl
from tests.conftest import ROOT


def test_every_case_is_there_once():
    samples = Bfcl().samples()
    assert len(samples) == len({sample.id for sample in samples}) == sum(CATEGORIES.values()) == 4441
    assert [sample.category for sample in samples] == [name for name, count in CATEGORIES.items() for _ in range(count)]
    # The package gives this id to two cases.
    relevance = [sample.id for sample in samples if sample.category == "live_relevance"]
    assert relevance[2:6] == [f"live_relevance_{name}" for name in ("2-2-0", "3-3-0", "3-3-0#2", "4-4-0")]


@pytest.mark.parametrize("category", ["simple", "live_multiple", "multi_turn_miss_func"])
def test_cases_are_sorted_by_their_number(category):
    ids = [case.id for case in load_cases(category)]
    assert [int(name.removeprefix(f"{category}_").split("-")[0]) for name in ids] == list(range(CATEGORIES[category]))


def test_answers_belong_to_their_cases():
    case = load_cases("live_simple")[0]
    assert case.id == "live_simple_0-0-0"
    assert case.answer == [{"get_user_info": {"user_id": [7890], "special": ["black"]}}]
    assert load_cases("irrelevance")[0].answer == ()


def test_functions_are_held_back_until_their_turn():
    case = load_cases("multi_turn_miss_func")[0]
    names = [doc["name"] for doc in case.functions]
    assert "sort" not in names and len(names) == 14 + 18 - 1  # TwitterAPI, then GorillaFileSystem
    assert names[0] == "authenticate_twitter" and names[14] == "cat"
    assert {turn: [doc["name"] for doc in docs] for turn, docs in case.held_back.items()} == {3: ["sort"]}
    assert case.question[3] == []
    assert len(load_cases("multi_turn_base")[0].functions) == 14 + 18  # taken from this case's list only


def test_groups_are_the_packages():
    assert {name: len(members) for name, members in GROUPS.items()} == {
        "all": 17, "single_turn": 13, "non_live": 7, "live": 6, "multi_turn": 4,
    }  # fmt: skip
    assert choose_categories(["live", "java"])[:2] == ("java", "live_simple")


@pytest.mark.parametrize(("names", "found"), [(["live", "rest", "sql"], "rest, sql"), ([], "an empty list")])
def test_unknown_categories_are_refused(names, found):
    with pytest.raises(ValueError, match=rf"benchmark\.bfcl\.categories: .* multi_turn_long_context, found {found}\."):
        choose_categories(names)


def test_the_package_is_found_but_not_imported():
    program = (
        "import sys; from src.environments.bfcl.cases import data_folder, load_cases; load_cases('simple');"
        "print(data_folder().name, [name for name in sys.modules if name.startswith('bfcl_eval')])"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "data []\n"


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cases, "version", missing)
    with pytest.raises(BenchmarkDataError, match=r"not installed\. Run: pip install --no-deps bfcl-eval==2025\.6\.14"):
        Bfcl().samples()


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(cases, "version", lambda name: "2025.6.16")
    with pytest.raises(BenchmarkDataError, match=r"expected bfcl-eval 2025\.6\.14, found 2025\.6\.16"):
        Bfcl().samples()


def test_damaged_files_are_named(tmp_path):
    name = "BFCL_v3_javascript.json"
    (tmp_path / "possible_answer").mkdir()
    for part in (name, f"possible_answer/{name}"):
        shutil.copy(data_folder() / part, tmp_path / part)
    assert len(load_cases("javascript", tmp_path)) == 50

    answers = (tmp_path / "possible_answer" / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / "possible_answer" / name).write_text("\n".join(answers[1:]), encoding="utf-8")
    with pytest.raises(
        BenchmarkDataError, match=r"possible_answer/BFCL_v3_javascript\.json: no answer to javascript_0"
    ):
        load_cases("javascript", tmp_path)

    rows = (tmp_path / name).read_text(encoding="utf-8").splitlines()
    (tmp_path / name).write_text("\n".join(rows[1:]), encoding="utf-8")
    with pytest.raises(BenchmarkDataError, match="expected 50 cases, found 49"):
        load_cases("javascript", tmp_path)

    (tmp_path / name).write_text("\n".join([rows[0], rows[1][:30]]), encoding="utf-8")
    with pytest.raises(BenchmarkDataError, match=r"BFCL_v3_javascript\.json:2: expected JSON"):
        load_cases("javascript", tmp_path)

    with pytest.raises(BenchmarkDataError, match=r"BFCL_v3_java\.json: not found"):
        load_cases("java", tmp_path)
    (tmp_path / name).write_text(json.dumps({"question": []}), encoding="utf-8")
    with pytest.raises(BenchmarkDataError, match=r"BFCL_v3_javascript\.json:1: expected an object with id, question"):
        load_cases("javascript", tmp_path)
