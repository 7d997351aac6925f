"""A small soak: faults at random, a run that ends, and every fault on record."""

import json
from pathlib import Path

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
def test_a_run_with_faults_ends_and_records_them(random_policy: Path, tmp_path: Path) -> None:
    report = soak(tmp_path, 20, 0.3, 1, f"policy.path={random_policy}")
    assert report["rollout_steps"] == 20
    assert report["all_recorded"]
    assert set(report["injected"]) == {"engine", "gradient", "logger"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = sum(line["train/skipped"] for line in lines if line["event"] == "rollout_step")
    assert skipped == report["injected"]["gradient"]
    assert len(list((tmp_path / "bad_minibatches").iterdir())) == min(3, skipped)
