"""The command that a run tells is one that can be typed."""

import sys
from types import SimpleNamespace

from hydra.core.hydra_config import HydraConfig

from src.runs.summary import command_line


def test_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/src/train.py", "seed=2", "data.path=a b"])
    assert command_line("resume=x") == "python src/train.py seed=2 'data.path=a b' resume=x"


def test_a_job_of_submitit_tells_its_own_command(monkeypatch):
    job = SimpleNamespace(job=SimpleNamespace(name="train"), overrides=SimpleNamespace(task=["seed=2"]))
    monkeypatch.setattr(sys, "argv", ["_submit.py", "logs/.submitit/1"])
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    assert command_line() == "python src/train.py seed=2"
