"""Run folders of every state are read."""

import json
import os
from pathlib import Path

import pytest

from src.wings.comparing.run_folders import ComparisonError, latest_run, read_run, read_runs
from tests.wings.reporting.made_runs import benchmark, step_metrics, validation, write_run


def test_a_finished_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "rest", 1, alarm="0.4 of them"))
    assert (run.method, run.seed, run.finished, run.steps_done) == ("rest", 1, True, 4)
    assert run.curve("reward/exact_match") == ((0, 1, 2, 3), (0.125, 0.25, 0.375, 0.5))
    assert run.curve("val/exact_match") == ((0, 4), (0.25, 0.75))
    assert run.curve("synthetic/overall") == ((0, 4), (0.25, 0.75))
    assert run.curve("nothing") == ((), ())
    assert (run.start["synthetic/overall"], run.final["val/exact_match"]) == (0.25, 0.75)
    (event,) = run.events
    assert (event.kind, event.step, event.text, event.advice) == ("truncated", 1, "0.4 of them", "raise it")


def test_an_unfinished_run_is_as_far_as_it_got(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "rest", 1, steps=3, finished=False, more=[validation(2, 0.5), benchmark(2, 0.375)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "rollout_step", "rollout_')  # the line that it is writing
    run = read_run(folder)
    assert (run.finished, run.steps_done) == (False, 3)
    assert (run.start["val/exact_match"], run.final["val/exact_match"]) == (0.25, 0.5)
    assert run.final["synthetic/overall"] == 0.375


def test_steps_that_are_there_twice_count_as_they_were_last(tmp_path: Path) -> None:
    again = [{"event": "rollout_step", "rollout_step": 3, **step_metrics(3, lift=0.25)}]
    alarms = [{"event": "alarm", "rollout_step": 3, "alarm": "a", "found": "b", "advice": "c"}] * 2
    run = read_run(write_run(tmp_path, "rest", 1, more=[*again, *alarms]))
    assert run.curve("reward/exact_match")[1] == (0.125, 0.25, 0.375, 0.75)
    assert len(run.events) == 1


def test_faults_are_events_with_their_values(tmp_path: Path) -> None:
    fault = {"event": "out_of_memory", "rollout_step": 2, "where": "rows", "max_row_tokens": 64}
    (event,) = read_run(write_run(tmp_path, "rest", 1, more=[fault])).events
    assert (event.kind, event.step, event.text) == ("out_of_memory", 2, "where rows, max_row_tokens 64")


def test_a_text_may_hold_any_line_break_but_a_line_s(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "rest", 1)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        event = {"event": "engine_fault", "rollout_step": 2, "error": "a\u2028b\x85c"}
        file.write(json.dumps(event, ensure_ascii=False) + "\n")
    assert read_run(folder).events[0].text == "error a\u2028b\x85c"


def test_folders_of_runs_are_expanded_and_names_are_unique(tmp_path: Path) -> None:
    for sweep in ("a", "b"):
        write_run(tmp_path / sweep, "rest", 1)
    write_run(tmp_path / "a", "grpo", 1)
    died = tmp_path / "a/died/.hydra"
    died.mkdir(parents=True)
    (died / "config.yaml").write_text("seed: 3\n")
    assert [run.name for run in read_runs([tmp_path / "a"])] == ["grpo-1", "rest-1"]
    assert [run.name for run in read_runs([tmp_path])] == ["a/grpo-1", "a/rest-1", "b/rest-1"]
    assert len(read_runs([tmp_path, tmp_path / "a", tmp_path / "a/rest-1"])) == 3
    assert [run.method for run in read_runs([tmp_path / "a/rest-1", tmp_path / "a"])] == ["rest", "grpo"]


def test_the_latest_run_is_the_one_that_finished_last(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, "rest", seed) for seed in (1, 2, 3)]
    write_run(tmp_path, "rest", 4, finished=False)
    for age, folder in zip((30, 10, 20), folders, strict=True):
        now = (folder / "summary.json").stat().st_mtime
        os.utime(folder / "summary.json", (now - age, now - age))
    assert latest_run(tmp_path) == folders[1]


def test_without_a_finished_run_the_latest_is_the_one_that_started_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "rest", 1, finished=False)
    assert latest_run(tmp_path) == folder


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"expected runs in '.*none', found no such folder\. Train one"):
        latest_run(tmp_path / "none")
    folder = write_run(tmp_path, "rest", 1)
    (folder / "summary.json").write_text("{")
    with pytest.raises(ComparisonError, match=r"summary\.json: expected JSON, found: .*Remove it"):
        read_run(folder)
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").write_text('{"event": 1}\n{"event": 2}\n')
    with pytest.raises(ComparisonError, match=r"metrics\.jsonl, line 1: expected a JSON object with event and"):
        read_run(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(ComparisonError, match=r"config\.yaml: expected a run's config as YAML"):
        read_run(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ComparisonError, match=r"expected a run with config\.yaml and metrics\.jsonl .*found none in"):
        read_runs([tmp_path])


def test_an_older_runs_settings_have_todays_names(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "rest", 1)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "\nrollout: {_target_: src.rollout.native.native_engine, weights: ~/w}\n")
    settings = read_run(folder).settings
    assert settings["rollout._target_"] == "src.rollout.native.engine.native_engine"
    assert settings["rollout.weights"] == "~/w"  # shown as it was written, without anybody's home folder
