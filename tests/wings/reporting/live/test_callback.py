"""What TensorBoard and W&B hold of a run, read back from their files."""

import gc
import html
import io
import json
import random
import re
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from src.train import train
from src.wings.comparing.run_folders import read_runs
from src.wings.reporting.figures import CHARTS, draw
from src.wings.reporting.live import callback as live_figures
from src.wings.reporting.live.callback import LiveFigures
from src.wings.reporting.live.dashboards import dashboards_of, show_figure
from src.wings.reporting.live.samples import COLUMNS
from tests.conftest import ROOT, SMALL, train_config
from tests.wings.reporting.live.wandb_file import OfflineRun
from tests.wings.reporting.made_runs import write_run

NAMED = "learning_curves region_entropy region_weights gradient_share benchmark_bars benchmark_radar events".split()
RUN = (
    *(override for override in SMALL if not override.startswith(("logger=", "benchmark="))),
    "benchmark.synthetic.size=8",
    "updates.rollout_steps=3",
    "trainer.val_check_interval=2",
    "data.train.num_train=40",
    "data.train.num_val=4",
    "sampling.max_new_tokens=64",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup_steps=0",
    "callbacks.benchmark.every_n_rollout_steps=2",
    "callbacks.health.max_sampler_gap=-1",  # an alarm at the first step
)


class Screen:
    """A dashboard that remembers, and draws random numbers."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def image(self, name, pixels, step):
        random.random(), np.random.rand(), torch.rand(())
        self.names.append(name)
        self.pixels = pixels

    def text(self, name, text, step):
        self.names.append(name)

    def settings(self, values):
        self.names.append("settings")


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Path:
    """The default run, small, with both loggers and a third that shows only numbers; figures at steps 0, 2 and 3."""
    folder = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        train(train_config(folder, *RUN, "logger=many", "callbacks.live_figures.every_n_rollout_steps=2"))
        wandb.finish()
    return folder


@pytest.fixture(scope="module")
def tensorboard(shown) -> EventAccumulator:
    return EventAccumulator(str(shown / "tensorboard"), {"images": 0, "tensors": 0}).Reload()


@pytest.fixture(scope="module")
def offline(shown) -> OfflineRun:
    return OfflineRun(shown)


def texts(tensorboard, tag) -> dict[int, str]:
    found = tensorboard.Tensors(f"{tag}/text_summary")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_figure_is_in_both_and_is_the_reports(name, shown, tensorboard, offline):
    ours = {event.step: event.encoded_image_string for event in tensorboard.Images(f"figures/{name}")}
    theirs = offline.media(f"figures/{name}")
    measured = {"learning_curves", "benchmark_bars"}  # before the first rollout step too; a radar has final scores
    assert sorted(ours) == sorted(theirs) == ([0, 2, 3] if name in measured else [2, 3])
    for step, png in ours.items():
        assert np.array_equal(pixels(png), pixels(theirs[step]))
    drawn = []
    runs = read_runs([shown])
    show_figure(
        [SimpleNamespace(image=lambda _, made, __: drawn.append(made))], "", draw(CHARTS[name](runs), ["rest"]), 3
    )
    assert np.array_equal(drawn[0], pixels(ours[3]))


def test_numbers_and_figures_share_an_axis(offline):
    steps = [row["trainer/global_step"] for row in offline.history]
    assert steps == sorted(steps)
    rewards = [row["trainer/global_step"] for row in offline.history if "reward/total" in row]
    assert rewards == [1, 2, 3]


def test_texts_are_in_both(shown, tensorboard, offline):
    overviews, pages = texts(tensorboard, "text/overview"), offline.media("text/overview")
    assert sorted(overviews) == sorted(pages) == [0, 2, 3]
    (alarm,) = (run.events[0] for run in read_runs([shown]))
    final = json.loads((shown / "summary.json").read_text())["final"]["synthetic/overall"]
    for page in map(html.unescape, (markdown_to_safe_html(overviews[3]), pages[3].decode())):
        assert "<h1>rest, seed 1, on tiny</h1>" in page and alarm.text in page
        assert "<td>synthetic/overall</td>" in page and f"<td>{final:.3f}</td>" in page
        assert "unfinished" not in page
    assert "unfinished: 2 of 3 rollout steps" in overviews[2]
    written = texts(tensorboard, "text/config")[0]
    for page in (markdown_to_safe_html(written), offline.media("text/config")[0].decode()):
        assert "rollout_steps: 3" in page and str(shown) not in page
    assert offline.config["algorithm"]["name"] == "rest" and offline.config["updates"]["rollout_steps"] == 3


def test_samples_are_in_both(shown, tensorboard, offline):
    tables = {step: json.loads(found) for step, found in offline.media("samples/completions").items()}
    logged = [json.loads(line) for line in (shown / "rollouts.jsonl").read_text().splitlines()]
    assert sorted(tables) == [2, 3]
    for done, table in tables.items():
        assert table["columns"] == list(COLUMNS)
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        expected = [record for record in logged if record["rollout_step"] == done - 1]
        for row, record in zip(rows, expected, strict=True):
            for key in ("example", "text", "reward", "exact_match", "parameter_values"):
                assert row[key] == record[key]
            assert row["prompt"] == expected[0]["prompt"]
            calls = [json.loads(line) for line in row["gold_calls"].splitlines()]
            assert calls == expected[0]["gold_calls"]
            regions = [line.split(":")[0] for line in row["regions"].splitlines()]
            assert set(regions) == set(record["regions"])
        page = markdown_to_safe_html(texts(tensorboard, "samples/completions")[done])
        assert page.count("<tr>") == 1 + len(rows)
        assert all(row["text"].replace("\n", " ↵ ") in html.unescape(page) for row in rows)


def test_the_documented_report_shows_what_is_logged(offline):
    """The program for W&B's report API in docs/reports.md: a key that nothing logs is an empty panel."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/reports.md").read_text(), re.DOTALL)
    (program,) = (example for example in examples if "import wandb_workspaces" in example)
    keys = set(re.findall(r'"(\w+/\w+)"', program)) - {"val_unseen/exact_match"}  # of the default's second split
    logged = {key for row in offline.history for key in row}
    assert len(keys) == 16 and keys <= logged
    (prefixes,) = re.findall(r"map\(by_region, \((.*)\)\)", program)
    assert all(f"{prefix}/tool_name" in logged for prefix in re.findall(r"\w+", prefixes))


@pytest.mark.slow
def test_training_is_bit_identical_without_it(shown, tmp_path):
    train(train_config(tmp_path, *RUN, "logger=csv", "callbacks.live_figures=null"))

    def numbers(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if not k.startswith("time/") and "seconds" not in k} for line in lines]

    assert numbers(tmp_path) == numbers(shown)
    on, off = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (shown, tmp_path)
    )
    assert all(torch.equal(on[name], off[name]) for name in on)


def test_a_run_that_goes_on_shows_what_it_had(tmp_path, monkeypatch):
    """Four steps are in the file of before; the process has seen none of them. Another rank shows nothing."""
    run, screen = write_run(tmp_path, "rest", 1, alarm="many"), Screen()
    monkeypatch.setattr(live_figures, "dashboards_of", lambda loggers: [screen])
    module = SimpleNamespace(rollout_step=4)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for main in (False, True):
        callback = LiveFigures(str(run / "metrics.jsonl"), str(run / "config.yaml"), 20)
        callback.on_fit_start(SimpleNamespace(is_global_zero=main, loggers=[]), module)
        for step in (4, 5):
            module.rollout_step = step
            callback.on_train_batch_start(None, module, [], 0)
        measured = [f"figures/{name}" for name in CHARTS if name not in ("updates", "episodes")]  # without numbers here
        assert [name for name in screen.names if name.startswith("figures/")] == (measured if main else [])
        assert [name for name in screen.names if not name.startswith("figures/")] == (
            ["settings", "text/config", "text/overview"] if main else []
        )
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_figures_are_let_go_of(tmp_path):
    (run,) = read_runs([write_run(tmp_path, "rest", 1)])
    drawn = []
    for make in CHARTS.values():
        figure = draw(make([run]), ["rest"])
        drawn.append(weakref.ref(figure))
        show_figure([Screen()], "figure", figure, 0)
        del figure
    gc.collect()
    assert [reference() for reference in drawn] == [None] * len(CHARTS)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_other_loggers_get_nothing(tmp_path):
    assert dashboards_of([CSVLogger(str(tmp_path))]) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.live_figures.every_n_rollout_steps=0", "every_n_rollout_steps: expected at least 1, found 0"),
        (
            "callbacks.live_figures.figures=[curves]",
            r"figures: expected some of .*found \['curves'\]",
        ),
        ("callbacks.metrics_file=null", "callbacks.live_figures draws what callbacks.metrics_file writes"),
    ],
)
def test_what_cannot_work_is_said_before_training(override, message, tmp_path):
    with pytest.raises(Exception, match=message):
        train(train_config(tmp_path, *RUN, "logger=csv", override))
