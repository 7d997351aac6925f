"""Killed runs, in small; `python -m tests.faults.kill --kills 20` is the whole of it, and `--mcp` kills servers too."""

import os
import signal
import time
from pathlib import Path

import pytest

from src.runs.signals import EXIT_SAVED
from tests.faults.kill import EPISODES, Victim, compare
from tests.faults.states import differences, steps_done


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    told, problems = compare(tmp_path, kills=3, steps=5)
    assert problems == [] and told.startswith("3 kills (2 any moment, 1 writing) of")


@pytest.mark.slow
def test_two_kills_of_two_ranks_change_nothing(tmp_path: Path) -> None:
    told, problems = compare(tmp_path, kills=2, ranks=2, steps=4)
    assert problems == [] and told.startswith("2 kills (1 any moment, 1 writing) of")


@pytest.mark.slow
def test_sigterm_on_one_of_two_ranks_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    whole, stopped = Victim(tmp_path / "whole", 4, 2), Victim(tmp_path / "stopped", 4, 2)
    assert whole.end() == 0
    process = stopped.start()
    while steps_done(stopped.folder) < 1 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == EXIT_SAVED
    assert 0 < steps_done(stopped.folder) < 4
    assert stopped.end() == 0
    assert differences(whole.folder, stopped.folder) == []


@pytest.mark.slow
def test_two_kills_of_an_episode_run_change_nothing(tmp_path: Path) -> None:
    told, problems = compare(tmp_path, kills=2, steps=4, overrides=EPISODES)
    assert problems == [] and told.startswith("2 kills (1 any moment, 1 writing) of")
