"""Tables say what the runs achieved, where they differ, and nothing that they should not."""

from pathlib import Path

from src.wings.comparing.run_folders import RunRecord, read_runs
from src.wings.reporting import tables
from src.wings.reporting.overview import sentences, title
from src.wings.reporting.tables import Table
from tests.wings.reporting.made_runs import write_run


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_results_are_means_over_seeds_and_paired_differences(tmp_path: Path) -> None:
    for method, seed, lift in (("grpo", 1, 0.0), ("grpo", 2, 0.125), ("rest", 1, 0.25), ("rest", 2, 0.25)):
        write_run(tmp_path, method, seed, lift=lift)
    table = tables.results(read_runs([tmp_path]), baseline="grpo")
    grpo, rest = texts(table)[:2]
    assert sentences(read_runs([tmp_path]))[0] == (
        "val/exact_match ends highest with rest, at 1.000, and lowest with grpo, at 0.812."
    )
    # grpo ends at 0.75 and 0.875: 0.8125, error 0.125 / 2; rest at 1.0 twice, 0.25 and 0.125 above
    assert grpo == ["val/exact_match", "grpo", "2", "0.250 ± 0.000", "0.812 ± 0.062", "+0.562", "–"]
    assert rest[4:6] == ["1.000 ± 0.000", "+0.750"] and rest[6].startswith("+0.188 [+0.125, +0.250]")
    assert [cell.strong for cell in table.rows[1]] == [False] * 4 + [True, False, False]
    assert table.rows[1][6].kind == "better"  # the interval is above 0
    assert [row[0] for row in texts(table)[::2]] == [
        *("val/exact_match", "synthetic/overall", "val/correctness", "val/format", "val/reward")
    ]


def test_one_run_is_compared_with_its_start_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    table = tables.results(read_runs([tmp_path]), baseline="grpo")
    assert table.head[-1] == "Change"
    assert texts(table)[0] == ["val/exact_match", "0.250", "0.750", "+0.500"]


def test_a_change_is_better_above_zero_and_worse_below(tmp_path: Path) -> None:
    for lift, kind in ((0.25, "better"), (-0.5, "number"), (-0.625, "worse")):  # from 0.25 to 0.75 + lift
        run = write_run(tmp_path / str(lift), "rest", 1, lift=lift)
        table = tables.results(read_runs([run]), baseline="grpo")
        assert texts(table)[0][3] == f"{0.5 + lift:+.3f}" and table.rows[0][3].kind == kind


def test_a_reward_that_a_schedule_moved_is_neither_better_nor_worse() -> None:
    """A run that does not say counts as moved."""
    scores = {0: {"val/exact_match": 0.5, "val/reward": -1.0}, 2: {"val/exact_match": 0.5, "val/reward": 1.0}}
    for summary, kind in (({"reward_moved": True}, "number"), (None, "number"), ({"reward_moved": False}, "better")):
        run = RunRecord("rest-1", "rest", 1, {0: {}}, validations=scores, summary=summary)
        table = tables.results([run], "grpo")
        assert texts(table)[1] == ["val/reward", "-1.000", "1.000", "+2.000"] and table.rows[1][3].kind == kind
        assert ("schedule" in table.note) is (kind == "number")


def test_a_run_without_measurements_has_dashes() -> None:
    unmeasured = RunRecord("rest-1", "rest", 1, {0: {}}, validations={2: {"val/exact_match": 0.5}})
    assert texts(tables.results([unmeasured], "grpo")) == [["val/exact_match", "–", "0.500", "–"]]
    assert tables.results([RunRecord("rest-1", "rest", 1, {0: {}})], "grpo").rows == ()


def test_settings_that_differ_without_seeds_paths_and_secrets(tmp_path: Path) -> None:
    write_run(tmp_path, "grpo", 1)
    write_run(tmp_path, "rest", 1)
    write_run(tmp_path, "rest", 2, data__path="/srv/eva/other.json", sampling__n=None)
    table = tables.differences(read_runs([tmp_path]))
    assert table.head == ("Setting", "grpo-1", "rest-1", "rest-2")
    assert texts(table) == [
        ["algorithm.name", "grpo", "rest", "rest"],
        ["algorithm.weighting.alpha", "0", "0.002", "0.002"],
        ["data.path", "…/train.json", "…/train.json", "…/other.json"],
    ]


def test_seeds_of_a_method_share_a_column(tmp_path: Path) -> None:
    for method, seed in (("grpo", 1), ("rest", 1), ("rest", 2)):
        write_run(tmp_path, method, seed)
    assert tables.differences(read_runs([tmp_path])).head == ("Setting", "grpo-1", "rest")


def test_another_budget_is_told(tmp_path: Path) -> None:
    write_run(tmp_path, "grpo", 1)
    write_run(tmp_path, "rest", 1)
    assert tables.comparable(read_runs([tmp_path])) == ""
    write_run(tmp_path, "rest", 2, updates__rollout_steps=9)
    told = tables.comparable(read_runs([tmp_path]))
    assert told == "updates.rollout_steps: expected the same for all runs, found 4 in grpo-1 and 9 in rest-2."


def test_how_runs_were_made(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    write_run(tmp_path, "rest", 2, steps=3, finished=False)
    runs = read_runs([tmp_path])
    finished, unfinished = texts(tables.provenance(runs))
    assert finished == ["rest-1", "rest", "1", "tiny", "4", "8", "4.1 min", "finished", "val/exact_match 0.750"]
    assert unfinished == ["rest-2", "rest", "2", "tiny", "3 of 4", "–", "–", "unfinished", "–"]
    assert tables.commands(runs) == {
        "rest-1": "python src/train.py hydra.run.dir=…/rest-1 'logger.wandb.api_key=***' seed=1"
    }
    assert texts(tables.versions(runs)) == [["python", "3.11.7"], ["torch", "2.13.0"]]
    assert title(runs) == "rest, seeds 1, 2, on tiny"
    assert sentences(runs) == [
        "val/exact_match rose from 0.250 to 0.750 in 4 rollout steps.",
        "synthetic/overall rose from 0.250 to 0.750 in 4 rollout steps.",
        "rest-2 is unfinished: 3 of 4 rollout steps are there.",
    ]


def test_events_say_where_and_how_long(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1, alarm="no /srv/ann/data/x.json")
    assert texts(tables.events(read_runs([tmp_path]))) == [
        ["rest-1", "1", "truncated", "no …/x.json", "3", "raise it"],
    ]


def test_tables_in_the_paper_s_layout() -> None:
    def run(method: str, overall: float, seed: int) -> RunRecord:
        scores = {f"api_bank/level_{level}": 0.5 for level in (1, 2, 3)} | {"api_bank/overall": overall}
        settings = {"policy.hub_id": "Qwen/Qwen3-8B"}
        return RunRecord(f"{method}-{seed}", method, seed, {}, benchmarks={9: scores}, settings=settings)

    (table,) = tables.paper_tables([run("grpo", 0.5, 1), run("rest", 0.625, 1), run("rest", 0.75, 2)])
    assert table.caption == "API-Bank (Table 2)" and table.head == ("Model", "Overall", "Level 1", "Level 2", "Level 3")
    assert texts(table)[:2] == [
        ["Qwen3-8B (grpo)", "50.00%", "50.00%", "50.00%", "50.00%"],
        ["Qwen3-8B (rest, 2 seeds)", "68.75%", "50.00%", "50.00%", "50.00%"],
    ]
    assert table.rows[1][1].strong and not table.rows[0][1].strong
    assert all(row[0].startswith("Qwen3-8B (") for row in texts(table))  # of the paper, those of the same model
    assert len(table.rows) == 2 + 8 and not any(row[0].text.startswith("Qwen3-8B") for row in table.more)
    (alone,) = tables.paper_tables([run("rest", 0.625, 1)], reference_rows="none")
    assert len(alone.rows) == 1 and alone.more == ()
    assert tables.paper_tables([RunRecord("a", "rest", 1, {})]) == []
