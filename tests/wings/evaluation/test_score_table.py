"""Tables: the paper's rows are the paper's, ours are above them, and a subset says that it is one."""

from src.environments.bfcl.cases import CATEGORIES
from src.wings.evaluation.benchmark import EvalReport, Record, Subset
from src.wings.evaluation.bfcl.scores import aggregate
from src.wings.evaluation.score_table import PaperRow, paper_rows, render_report

MULTI_TURN = [name for name in CATEGORIES if name.startswith("multi_turn")]


def bfcl_report(*categories: str) -> EvalReport:
    """A quarter of every category passes, half of multi_turn_base."""
    shares = {name: 0.5 if name == "multi_turn_base" else 0.25 for name in categories}
    records = tuple(Record(f"{name}/{i}", name, i < 4 * share) for name, share in shares.items() for i in range(4))
    return EvalReport("bfcl", aggregate(shares), dict.fromkeys(categories, 4) | {"truncated": 3}, records)


def section(text: str, title: str) -> list[str]:
    (found,) = [part for part in text.split("\n## ") if part.startswith(title)]
    return found.splitlines()


def rows(lines: list[str]) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name: values for name, *values in cells}


def test_every_row_of_the_papers_tables_is_there():
    counts = {table: len(paper_rows([table])) for table in ("1", "2", "D.1", "D.2", "D.3")}
    assert counts == {"1": 40, "2": 32, "D.1": 28, "D.2": 7, "D.3": 7}
    for size in ("1.7B", "4B-2507", "8B", "14B"):
        assert [len(paper_rows([table], f"Qwen3-{size} ")) for table in ("1", "2", "D.1")] == [8, 8, 7]
    (ours,) = paper_rows(["1"], "qwen3-8b (ours")
    assert tuple(ours.scores.values()) == (40.13, 50.50, 45.00, 32.00, 33.00)
    (llama,) = paper_rows(["D.3"], "ResT")
    assert llama.scores["multi_turn"] == 3.50 and llama.scores["non_live_ast"] == 83.19
    assert all(0 <= value <= 100 for row in paper_rows(counts) for value in row.scores.values())


def test_rows_add_up_but_for_four():
    """Table 1: mean of four; 2 and D.2: by 399, 67 and 131 samples; D.1: by 1,150 and 1,351 cases."""
    odd = [(row.table, row.model) for row in paper_rows(["1", "2", "D.1", "D.2", "D.3"]) if not row.adds_up]
    assert odd == [
        ("2", "Qwen3-1.7B (GRPO)"),  # 63.65, its levels give 63.15
        ("2", "Qwen3-1.7B (Dr.GRPO)"),  # 57.55, its levels give 67.79
        ("2", "Qwen3-8B (SFT+GRPO)"),  # 63.82, its levels give 63.48
        ("2", "Qwen3-8B (Dr.GRPO)"),  # 68.15, its levels give 76.07
    ]


def test_multi_turn_scores_are_whole_samples_of_200():
    for row in paper_rows(["1"]):
        parts = [value for key, value in row.scores.items() if key != "multi_turn"]
        assert len(parts) == 4 and all((2 * value).is_integer() for value in parts), row.model


def test_rounding_is_no_contradiction():
    """(12 + 5.5 + 9.5 + 7.5) / 4 = 8.625: the paper's 8.62 stands, 8.64 would not."""
    parts = {"multi_turn_base": 12, "multi_turn_miss_func": 5.5, "multi_turn_miss_param": 9.5}
    parts["multi_turn_long_context"] = 7.5
    assert [PaperRow("1", "x", {"multi_turn": total, **parts}).adds_up for total in (8.62, 8.63, 8.64)] == [1, 1, 0]


def test_bfcl_tables_have_the_papers_layout():
    text = render_report("mine", {"bfcl": bfcl_report(*CATEGORIES)})
    multi = section(text, "BFCL multi-turn (Table 1), n = 16")
    found = rows(multi)
    assert found["Model"] == ["Overall", "Base", "Miss Func", "Miss Param", "Long Context"]
    assert list(found)[2] == "**mine**"  # after head and rule
    # (50 + 3 * 25) / 4 = 31.25
    assert found["**mine**"] == ["31.25%", "50.00%", "25.00%", "25.00%", "25.00%"]
    assert found["Qwen3-1.7B (Base)"] == ["8.62%", "12.00%", "5.50%", "9.50%", "7.50%"]
    assert found["Llama-3.2-3B-Instruct (Ours, ResT) [D.3]"] == ["3.50%", "–", "–", "–", "–"]
    assert len(found) == 3 + 40 + 7
    single = rows(section(text, "BFCL single-turn (Table D.1), n = 52"))
    assert single["Model"] == ["Overall", "Non-live", "Live", "Rel.", "Irrel."]
    assert single["**mine**"] == ["25.00%"] * 5
    assert "truncated 3" in text


def test_unparsed_answers_stand_beside_the_scores_that_they_gain():
    counts = {"irrelevance": 4, "unparsed/irrelevance": 3, "unparsed": 3, "truncated": 1}
    scores = {"irrelevance": 0.75, "irrelevance_detection": 0.75}
    report = EvalReport("bfcl", scores, counts, tuple(Record(str(i), "irrelevance", i < 3) for i in range(4)))
    lines = section(render_report("mine", {"bfcl": report}), "bfcl: all scores")
    found = rows(lines)
    assert found["Score"] == ["Value", "n", "unparsed"] and found["irrelevance"] == ["75.00%", "4", "3"]
    assert found["irrelevance_detection"] == ["75.00%", "", ""]
    assert lines[-1] == "Counts: unparsed 3, truncated 1."


def test_scores_that_were_not_taken_are_dashes():
    found = rows(section(render_report("mine", {"b": bfcl_report("multi_turn_base")}), "BFCL multi-turn"))
    assert found["**mine**"] == ["–", "50.00%", "–", "–", "–"]
    assert "single-turn" not in render_report("mine", {"b": bfcl_report("multi_turn_base")})
    assert "multi-turn" not in render_report("mine", {"b": bfcl_report("simple")})


def api_bank_report() -> EvalReport:
    records = (Record("0", "level_1", True), Record("1", "level_2", False))
    scores = {"overall": 0.5, "level_1": 1.0, "level_2": 0.0, "strict": 0.0}
    return EvalReport("api_bank", scores, {"level_1": 1, "level_2": 1}, records)


def test_api_bank_marks_rows_that_do_not_add_up():
    text = render_report("mine", {"api_bank": api_bank_report()}, subset=Subset(2, 7), reference_rows="qwen3-8b")
    lines = section(text, "API-Bank (Table 2), n = 2: a stratified subset, seed 7")
    found = rows(lines)
    assert found["**mine**"] == ["50.00%", "100.00%", "0.00%", "–"]
    assert [name for name in found if "†" in name] == ["Qwen3-8B (SFT+GRPO) †", "Qwen3-8B (Dr.GRPO) †"]
    assert len(found) == 3 + 8 and lines[-1].startswith("† ")
    every = rows(section(text, "api_bank: all scores, n = 2: a stratified subset, seed 7"))
    assert every["level_1"] == ["100.00%", "1"] and every["strict"] == ["0.00%", ""]


def test_reference_rows_can_be_left_out():
    text = render_report("mine", {"api_bank": api_bank_report()}, reference_rows="none")
    assert "Qwen3" not in text and "paper's" not in text and "**mine**" in text


def test_another_benchmark_has_a_plain_table():
    report = EvalReport("toy", {"overall": 1 / 3}, {}, (Record("0", "a", True),))
    assert rows(render_report("mine", {"toy": report}).splitlines()) == {
        "Score": ["Value", "n"],
        ":--------": ["--------:", "----:"],
        "overall": ["33.33%", ""],
    }
