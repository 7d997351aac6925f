"""Alarms on runs made by hand: each is told once, with advice, and goes on in a resumed run."""

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.health import Fallen, FormatWithoutCorrectness, Health, MissingRegion
from src.callbacks.metrics_file import MetricsFile
from src.callbacks.slow_logger import SlowLogger
from src.training.step import RolloutCallback, RolloutStep


def trainer_with(*callbacks: Any, loggers: tuple[Any, ...] = ()) -> Any:
    module = SimpleNamespace(rollout_step=7)
    return SimpleNamespace(callbacks=list(callbacks), lightning_module=module, loggers=list(loggers))


def feed(callback: Health, trainer: Any, run: list[dict[str, float]], start: int = 0) -> list[dict[str, float]]:
    """The health metrics of each rollout step."""
    steps = [RolloutStep(start + index, [], [], [], dict(metrics)) for index, metrics in enumerate(run)]
    for step in steps:
        callback.on_rollout_step_end(trainer, trainer.lightning_module, step)
    return [{key: value for key, value in step.metrics.items() if key.startswith("health/")} for step in steps]


def test_a_fall_from_the_first_mean_by_hand():
    """Means over 2: 1.0 at the start; 0.55, then 0.1 and 0.09 < 0.1 * 1.0."""
    alarm = Fallen("entropy_collapse", "advice", "train/entropy", share=0.1, window=2)
    entropies = [1.0, 1.0, 0.1, float("nan"), 0.1, 0.08]
    found = [alarm.read({"train/entropy": entropy}) for entropy in entropies]
    assert found[:5] == [None] * 5
    assert found[5] == "train/entropy fell to 0.09 from 1, below 0.1 of it"


def test_format_up_while_correctness_is_down_by_hand():
    """Means over 2. Best correctness (0.5 + 0.7) / 2 = 0.6, with format 0.8; at the end 0.45 with 0.95."""
    alarm = FormatWithoutCorrectness(rise=0.1, fall=0.1, window=2)
    run = [(0.8, 0.5), (0.8, 0.7), (0.9, 0.4), (1.0, 0.5)]
    found = [alarm.read({"reward/format": look, "reward/correctness": sense}) for look, sense in run]
    assert found[:3] == [None, None, None]  # 0.85 is not up by 0.1 yet
    assert found[3] == "reward/format rose from 0.8 to 0.95 while reward/correctness fell from 0.6 to 0.45"


def test_both_down_or_both_up_is_no_such_alarm():
    for run in ([(0.9, 0.9)] * 2 + [(0.1, 0.1)] * 2, [(0.1, 0.1)] * 2 + [(0.9, 0.9)] * 2):
        alarm = FormatWithoutCorrectness(rise=0.1, fall=0.1, window=2)
        assert [alarm.read({"reward/format": a, "reward/correctness": b}) for a, b in run] == [None] * 4


def test_a_region_that_never_appears():
    alarm = MissingRegion(["reasoning", "response", "format"], patience=3)
    shares = [(0.5, 0.0, 0.5), (0.0, 0.0, 1.0), (0.5, 0.0, 0.5), (0.4, 0.1, 0.5)]
    keys = ("token_share/reasoning", "token_share/response", "token_share/format")
    found = [alarm.read(dict(zip(keys, row, strict=True))) for row in shares]
    assert found == [None, None, "no token in region response in 3 rollout steps", None]
    assert MissingRegion(["response"], patience=1).read({}) is None  # nobody counts


BAD = {
    "group/zero_variance": 1.0,
    "train/sampler_gap": 0.5,
    "response/truncated": 0.9,
    "token_share/format": 1.0,
    **{f"token_share/{region}": 0.0 for region in ("tool_name", "tool_parameters", "reasoning", "response")},
}
GOOD = {"train/entropy": 1.0, "response/with_call": 0.5, "reward/format": 0.5, "reward/correctness": 0.9}
WORSE = {"train/entropy": 0.01, "response/with_call": 0.0, "reward/format": 0.9, "reward/correctness": 0.1}
ALARMS = (
    "zero_variance sampler_gap truncated entropy_collapse fewer_calls format_without_correctness missing_region"
).split()


def test_every_alarm_is_an_event_once_with_advice(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = trainer_with(MetricsFile(str(tmp_path / "metrics.jsonl")))
    with caplog.at_level(logging.WARNING):
        counts = feed(Health(), trainer, [BAD | GOOD] * 10 + [BAD | WORSE] * 20)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(event["alarm"] for event in events) == sorted(ALARMS)
    assert all(event["event"] == "alarm" and event["advice"] for event in events)
    first = {event["alarm"]: event["rollout_step"] for event in events}
    assert first["zero_variance"] == 0 and first["missing_region"] == 19 and first["entropy_collapse"] == 14
    assert len(caplog.records) == len(ALARMS)
    assert counts[-1]["health/truncated_steps"] == 30 and counts[-1]["health/missing_region_steps"] == 11


def test_a_healthy_run_has_none():
    counts = feed(Health(), trainer_with(), [GOOD | {f"token_share/{region}": 0.2 for region in REGIONS}] * 40)
    assert set(counts[-1].values()) == {0.0}


REGIONS = ("format", "tool_name", "tool_parameters", "reasoning", "response")


class Told(RolloutCallback):
    def __init__(self):
        self.alarms: list[str] = []

    def on_event(self, trainer, module, event, values):
        self.alarms.append(values["alarm"])


def test_a_resumed_run_counts_on_and_tells_nothing_twice():
    run = [BAD | GOOD] * 10 + [BAD | WORSE] * 20
    whole = feed(Health(), trainer_with(), run)
    first, second = Health(), Health()
    counts = feed(first, trainer_with(), run[:13])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # plain values only
    told = Told()
    assert counts + feed(second, trainer_with(told), run[13:], start=13) == whole
    # at steps 14, 14 and 19; the others came before
    assert told.alarms == ["entropy_collapse", "fewer_calls", "missing_region"]


class Sleepy:
    """Takes 0.05 s for every second call."""

    def __init__(self):
        self.logged = 0

    def log_metrics(self, metrics, step=None):
        self.logged += 1
        if self.logged % 2:
            time.sleep(0.05)


def test_a_slow_logger_is_an_event_each_time_and_a_warning_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    logger, callback = Sleepy(), SlowLogger(max_seconds=0.04)
    trainer = trainer_with(MetricsFile(str(tmp_path / "metrics.jsonl")), loggers=(logger,))
    callback.on_fit_start(trainer, trainer.lightning_module)
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step=step)
    callback.teardown(trainer, trainer.lightning_module, "fit")
    logger.log_metrics({})
    logger.log_metrics({})
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(events) >= 2 and {event["logger"] for event in events} == {"Sleepy"}
    assert all(event["event"] == "slow_logger" and event["seconds"] > 0.04 for event in events)
    assert logger.logged == 5 and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"callbacks\.slow_logger\.max_seconds: expected above 0, found 0"):
        SlowLogger(0)


def test_it_warns_once_and_counts(caplog):
    metrics = {"group/zero_variance": 0.95, "train/sampler_gap": 1e-6, "response/truncated": 0.1}
    callback, trainer = Health(), trainer_with()
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            step = RolloutStep(index, [], [], [], dict(metrics))
            callback.on_rollout_step_end(trainer, trainer.lightning_module, step)
    assert [record.message.split(":")[1].strip() for record in caplog.records] == [
        "group/zero_variance is 0.95, over 0.9"
    ]
    assert step.metrics["health/zero_variance_steps"] == 3 and step.metrics["health/truncated_steps"] == 0
